"""Random weights under the released state-dict keys, for any width and depth.
What plain_caft.py reads where no released file is at hand: fixtures, tests, speed comparisons."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from plain_caft import STEM_STRIDE, STEM_STRIDES
from torch import Tensor

LOG_SCALE = math.log(1 / 0.07)
BIAS_STD = 0.1
LAYER_SCALE_STD = 0.5  # trained size rather than initial: the adapter must be seen in the result
TEXT_MLP_RATIO = 4
MIN_ADAPTER_WIDTH = 64

CAFT_B: dict[str, Any] = {
    "embed_dim": 512,
    "init_logit_bias": -10.0,
    "vision_cfg": {
        "image_size": 224,
        "embed_dim": 768,
        "num_clusters": [64, 32, 16],
        "depth": [3, 3, 3, 2],
        "num_heads": 12,
        "mlp_ratio": 4,
        "norm_layer_eps": 1e-6,
    },
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 512,
        "heads": 8,
        "layers": 8,
    },
    "text_coarse_cfg": {"context_length": 4, "width": 512, "heads": 8, "layers": 4},
}


def random_state_dict(config: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """A state dict with every released key but the superpixel network's, values from `seed`."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float) -> Tensor:
        return std * torch.randn(shape, generator=generator)

    def linear(name: str, fan_in: int, fan_out: int, packed: str = "") -> None:
        """`packed` is the "_" of nn.MultiheadAttention's in_proj_weight."""
        dot = packed or "."
        weights[f"{name}{dot}weight"] = normal(fan_out, fan_in, std=fan_in**-0.5)
        weights[f"{name}{dot}bias"] = normal(fan_out, std=BIAS_STD)

    def norm(name: str, width: int) -> None:
        weights[f"{name}.weight"] = 1 + normal(width, std=BIAS_STD)
        weights[f"{name}.bias"] = normal(width, std=BIAS_STD)

    def text_blocks(prefix: str, width: int, layers: int) -> None:
        for n in range(layers):
            block = f"{prefix}transformer.resblocks.{n}."
            norm(f"{block}ln_1", width)
            linear(f"{block}attn.in_proj", width, 3 * width, packed="_")
            linear(f"{block}attn.out_proj", width, width)
            norm(f"{block}ln_2", width)
            linear(f"{block}mlp.c_fc", width, TEXT_MLP_RATIO * width)
            linear(f"{block}mlp.c_proj", TEXT_MLP_RATIO * width, width)

    weights: dict[str, Tensor] = {}
    vision, text, whole = config["vision_cfg"], config["text_cfg"], config["text_coarse_cfg"]
    width, embed = vision["embed_dim"], config["embed_dim"]
    hidden = int(width * vision["mlp_ratio"])

    weights["visual.cls_token"] = normal(1, 1, width, std=1)
    cells = (vision["image_size"] // STEM_STRIDE) ** 2
    weights["visual.pos_embed"] = normal(1, cells, width, std=0.5)
    weights["visual.pe_token"] = torch.zeros(1, 1, width)
    channels = 3
    for n in range(len(STEM_STRIDES)):
        conv, batch_norm = (f"visual.patch_embed.proj.{3 * n + step}" for step in (0, 1))
        out = width >> (len(STEM_STRIDES) - 1 - n)
        weights[f"{conv}.weight"] = normal(out, channels, 3, 3, std=(9 * channels) ** -0.5)
        norm(batch_norm, out)
        weights[f"{batch_norm}.running_mean"] = normal(out, std=BIAS_STD)
        weights[f"{batch_norm}.running_var"] = 0.5 + torch.rand(out, generator=generator)
        weights[f"{batch_norm}.num_batches_tracked"] = torch.tensor(1)
        channels = out
    last = f"visual.patch_embed.proj.{3 * len(STEM_STRIDES)}"
    linear(last, channels, width)
    weights[f"{last}.weight"] = weights[f"{last}.weight"][:, :, None, None]
    for n in range(sum(vision["depth"])):
        block = f"visual.blocks.{n}."
        norm(f"{block}norm1", width)
        linear(f"{block}attn.qkv", width, 3 * width)
        linear(f"{block}attn.proj", width, width)
        norm(f"{block}norm2", width)
        linear(f"{block}mlp.fc1", width, hidden)
        linear(f"{block}mlp.fc2", hidden, width)
    for n in range(len(vision["num_clusters"])):
        pool = f"visual.pools.{n}.pool_block."
        weights[f"{pool}centroid_fc.bias"] = normal(width, std=BIAS_STD)
        norm(f"{pool}centroid_fc.norm", width)
        linear(f"{pool}centroid_fc.attn.qkv", width, 3 * width)
        linear(f"{pool}centroid_fc.attn.proj", width, width)
        norm(f"{pool}fc1.0", width)
        linear(f"{pool}fc1.1", width, hidden)
        norm(f"{pool}fc2.0", hidden)
        linear(f"{pool}fc2.1", hidden, width)
    norm("visual.norm", width)
    norm("visual.norm_fine", width)
    weights["image_post.proj"] = normal(width, embed, std=width**-0.5)
    weights["image_post_coarse.proj"] = normal(width, embed, std=width**-0.5)

    linear("visual_proj.attn.in_proj", embed, 3 * embed, packed="_")
    linear("visual_proj.attn.out_proj", embed, embed)
    for name in ("ln_q", "ln_k", "ln_v"):
        norm(f"visual_proj.{name}", embed)

    width = text["width"]
    weights["token_embedding.weight"] = normal(text["vocab_size"], width, std=1)
    weights["positional_embedding"] = normal(text["context_length"], width, std=BIAS_STD)
    text_blocks("", width, text["layers"])
    norm("ln_final", width)
    weights["text_post.proj"] = normal(width, embed, std=width**-0.5)

    chunks, adapter = whole["context_length"], max(MIN_ADAPTER_WIDTH, width * 2 // 3)
    linear("paragraph_encoder.adapter.mlp.c_fc", width, adapter)
    linear("paragraph_encoder.adapter.mlp.c_proj", adapter, width)
    weights["paragraph_encoder.adapter.ls.gamma"] = normal(width, std=LAYER_SCALE_STD)
    weights["paragraph_encoder.cls_embed"] = normal(1, 1, width, std=1)
    weights["paragraph_encoder.positional_embedding"] = normal(1, chunks + 1, width, std=BIAS_STD)
    text_blocks("paragraph_encoder.", width, whole["layers"])
    norm("paragraph_encoder.ln_final", width)
    weights["text_post_coarse.proj"] = normal(width, embed, std=width**-0.5)

    for suffix in ("", "_coarse"):
        weights[f"logit_scale{suffix}"] = torch.tensor(LOG_SCALE)
        weights[f"logit_bias{suffix}"] = torch.tensor(float(config["init_logit_bias"]))
    return weights
