"""Small configurations and inputs that several test files share."""

import numpy as np
import torch

from caft.config import (
    FlatImageConfig,
    ImageConfig,
    LossConfig,
    ModelConfig,
    SuperpixelConfig,
    TextConfig,
)


def tiny_config(**changes) -> ModelConfig:
    """A CAFT of about 0.1M parameters on 32-px images: 16 superpixels, 8/4/2 segments."""
    image = ImageConfig(
        image_size_px=32,
        stem_widths=(8, 16),
        stem_strides=(2, 2),
        width=32,
        heads=4,
        pool_attn_heads=4,
        group_depths=(1, 1, 1, 1),
        segments=(8, 4, 2),
        superpixels=SuperpixelConfig(method="grid", cell_px=8),
    )
    text = TextConfig(
        tokenizer="clip",
        context_length=16,
        width=32,
        heads=4,
        layers=1,
        whole_layers=1,
        whole_heads=4,
        vocab_size=49408,
    )
    fields = {"name": "tiny", "embed_dim": 16, "pool_heads": 4, "image": image, "text": text}
    return ModelConfig(**(fields | changes))


def tiny_controls() -> dict[str, ModelConfig]:
    """`tiny_config` and every family of controls at its size, by name."""
    tiny = tiny_config()
    flat = FlatImageConfig(image_size_px=32, patch_px=8, width=32, heads=4, depth=2)
    one_text = {"chunks": 1, "whole": "mean", "context_length": 64}
    clip_text = tiny.text.model_copy(update=one_text)
    changes = {
        "caft": {},
        "caft_no_parts": {"losses": LossConfig(parts=False)},
        "caft_mean_text": {"text": tiny.text.model_copy(update={"whole": "mean"})},
        "caft_softmax": {"losses": LossConfig(whole="softmax")},
        "clip": {"image": flat, "text": clip_text, "losses": LossConfig(parts=False)},
        "clip_softmax": {
            "image": flat,
            "text": clip_text,
            "losses": LossConfig(parts=False, whole="softmax"),
        },
        "flair": {"image": flat, "losses": LossConfig(whole="none")},
        "flat_caft": {"image": flat},
    }
    return {name: tiny_config(name=name, **change) for name, change in changes.items()}


def random_images(count: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    """Blocky random uint8 images (B, 3, size, size)."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (count, 3, size // 8, size // 8), dtype=np.uint8)
    return torch.from_numpy(blocks.repeat(8, axis=2).repeat(8, axis=3))
