"""FLAIR's released files behind the adapter interface: the control `flair_b16` has the same parts.
Weights are mapped by their keys; a text is one query that pools the patches it speaks of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt
from pathlib import Path

import torch
from torch import Tensor, nn

from caft.checkpoint import sha256_of
from caft.checkpoint.clip_keys import OPENAI_KEYS, openai_key
from caft.config import FlatImageConfig, LossConfig, ModelConfig, TextConfig
from caft.errors import CheckpointError
from caft.model import CAFT
from pipelines.evaluate.adapters.own import CAFTAdapter

HEAD_WIDTH, POOL_HEADS = 64, 8  # which leave no trace in a shape
NORM_EPS = 1e-5  # of both encoders
# Ours -> FLAIR's, by the beginning of a name; positions and packed projections are made below.
KEYS = OPENAI_KEYS | {
    "fine_projection": "image_post.proj",
    "part_projection": "text_post.proj",
    "attention_pool.proj.": "visual_proj.attn.out_proj.",
    "attention_pool.norm_": "visual_proj.ln_",
    "part_log_scale": "logit_scale",
    "part_bias": "logit_bias",
}
PACKED = "visual_proj.attn.in_proj_"
POSITIONS, CLASS = "visual.positional_embedding", "visual.class_embedding"


def is_flair(weights: Mapping[str, Tensor]) -> bool:
    return {"visual.conv1.weight", "image_post.proj", f"{PACKED}weight"} <= weights.keys()


class FLAIRAdapter(CAFTAdapter):
    """A file of FLAIR's weights, scored as it was published: by the part score of the whole text,
    at 77 tokens, on the picture's central square.

    Raises:
        CheckpointError: a key is missing, surplus or of another shape; all of them are named.
    """

    def __init__(self, file: Path, weights: Mapping[str, Tensor]) -> None:
        try:
            self.model = flair_model(weights, file.stem)
        except CheckpointError as error:
            raise CheckpointError(f"{file}: {error}") from None
        self.name, self.fingerprint = file.stem, sha256_of(file)
        self.sentences = None


def flair_model(weights: Mapping[str, Tensor], name: str) -> CAFT:
    """The control `flair_b16`, at the sizes and with the weights of FLAIR; in eval mode."""
    model = CAFT(_config(weights, name)).eval()
    for module in model.image_encoder.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = NORM_EPS
    used, problems = set(), []
    for ours, slot in model.state_dict().items():
        keys = _keys(ours)
        used |= set(keys)
        if missing := [key for key in keys if key not in weights]:
            problems += [f"missing '{key}'" for key in missing]
            continue
        value = _value(ours, weights)
        if value.numel() != slot.numel():
            problems.append(f"'{keys[0]}' is {tuple(weights[keys[0]].shape)}")
            continue
        with torch.no_grad():
            slot.copy_(value.reshape(slot.shape))
    problems += [f"surplus '{key}'" for key in weights if key not in used]
    if problems:
        raise CheckpointError(f"FLAIR's weights do not fit: {'; '.join(dict.fromkeys(problems))}")
    return model


def _config(weights: Mapping[str, Tensor], name: str) -> ModelConfig:
    try:
        width, _, patch_px, _ = weights["visual.conv1.weight"].shape
        grid = isqrt(len(weights[POSITIONS]) - 1)
        hidden = len(weights["visual.transformer.resblocks.0.mlp.c_fc.weight"])
        context_length, text_width = weights["positional_embedding"].shape
        vocab_size = len(weights["token_embedding.weight"])
        embed_dim = weights["image_post.proj"].shape[1]
    except KeyError as error:
        raise CheckpointError(f"FLAIR's weights do not fit: missing {error}") from None
    image = FlatImageConfig(
        image_size_px=grid * patch_px,
        preprocess="crop",
        patch_px=patch_px,
        width=width,
        heads=width // HEAD_WIDTH,
        mlp_ratio=hidden / width,
        depth=_layers(weights, "visual.transformer.resblocks."),
    )
    text = TextConfig(
        vocab_size=vocab_size,
        context_length=context_length,
        width=text_width,
        heads=text_width // HEAD_WIDTH,
        layers=_layers(weights, "transformer.resblocks."),
        chunks=1,
    )
    losses = LossConfig(parts=True, whole="none")
    return ModelConfig(
        name=name, embed_dim=embed_dim, pool_heads=POOL_HEADS, image=image, text=text, losses=losses
    )


def _layers(weights: Mapping[str, Tensor], prefix: str) -> int:
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return len({match[1] for match in map(pattern.match, weights) if match})


def _keys(ours: str) -> tuple[str, ...]:
    """FLAIR's keys that make one of our tensors."""
    if ours == "image_encoder.cls_token":
        return (CLASS, POSITIONS)
    if ours == "image_encoder.positions":
        return (POSITIONS,)
    if match := re.fullmatch(r"attention_pool\.to_[qkv]\.(.+)", ours):
        return (f"{PACKED}{match[1]}",)
    return (openai_key(ours, KEYS),)


def _value(ours: str, weights: Mapping[str, Tensor]) -> Tensor:
    keys = _keys(ours)
    if ours == "image_encoder.cls_token":  # ours has no position of its own
        return weights[CLASS].float() + weights[POSITIONS][0].float()
    if ours == "image_encoder.positions":
        return weights[POSITIONS][1:]
    if match := re.match(r"attention_pool\.to_(.)", ours):
        return weights[keys[0]].chunk(3)["qkv".index(match[1])]
    return weights[keys[0]]
