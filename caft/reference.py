"""Maps the released reference checkpoints to this model: configuration names and weight keys.
Used by load_model for released files, and by the golden-number tests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from caft.config import ImageConfig, ModelConfig, SuperpixelConfig, TextConfig
from caft.errors import CheckpointError
from caft.model import CAFT

SUPERPIXEL_PREFIX = "visual.superpixel_generator."
UNUSED_KEYS = ("visual.pe_token",)  # a position for cls that stays zero

_BLOCK = {
    "attn.qkv": "attn.qkv",
    "attn.proj": "attn.proj",
    "attn.in_proj_": "attn.qkv.",
    "attn.out_proj": "attn.proj",
    "ln_1": "norm1",
    "ln_2": "norm2",
    "norm1": "norm1",
    "norm2": "norm2",
    "mlp.fc1": "expand",
    "mlp.fc2": "contract",
    "mlp.c_fc": "expand",
    "mlp.c_proj": "contract",
}
_POOL = {
    "centroid_fc.bias": "group_bias",
    "centroid_fc.norm": "group_norm",
    "centroid_fc.attn": "group_attn",
    "fc1": "expand",
    "fc2": "contract",
}
_DIRECT = {
    "positional_embedding": "part_text_encoder.positions",
    "token_embedding.weight": "part_text_encoder.token_embedding.weight",
    "ln_final": "part_text_encoder.norm",
    "logit_scale": "part_log_scale",
    "logit_bias": "part_bias",
    "logit_scale_coarse": "whole_log_scale",
    "logit_bias_coarse": "whole_bias",
    "image_post.proj": "fine_projection",
    "image_post_coarse.proj": "coarse_projection",
    "text_post.proj": "part_projection",
    "text_post_coarse.proj": "whole_projection",
    "visual.cls_token": "image_encoder.cls_token",
    "visual.pos_embed": "image_encoder.positions",
    "visual.norm": "image_encoder.norm_coarse",
    "visual.norm_fine": "image_encoder.norm_fine",
    "visual_proj.attn.out_proj": "attention_pool.proj",
    "visual_proj.ln_q": "attention_pool.norm_q",
    "visual_proj.ln_k": "attention_pool.norm_k",
    "visual_proj.ln_v": "attention_pool.norm_v",
    "paragraph_encoder.cls_embed": "whole_text_encoder.cls_token",
    "paragraph_encoder.positional_embedding": "whole_text_encoder.positions",
    "paragraph_encoder.ln_final": "whole_text_encoder.norm",
    "paragraph_encoder.adapter.ls.gamma": "whole_text_encoder.adapter_scale",
    "paragraph_encoder.adapter.mlp.c_fc": "whole_text_encoder.adapter.0",
    "paragraph_encoder.adapter.mlp.c_proj": "whole_text_encoder.adapter.2",
}


def from_reference(
    state_dict: Mapping[str, Tensor], config: Mapping[str, Any], reference_quirks: bool = True
) -> CAFT:
    """Build a CAFT from a released state dict and configuration.

    Args:
        state_dict: weights under the released key names.
        config: the released configuration (`embed_dim`, `vision_cfg`, `text_cfg`, ...).
        reference_quirks: keep dead superpixels as the reference does, so that scores match.

    Raises:
        CheckpointError: a key is missing, surplus or of another shape; all of them are named.
    """
    model = CAFT(reference_config(config, reference_quirks)).eval()
    load_reference_weights(model, state_dict)
    return model


def reference_config(config: Mapping[str, Any], reference_quirks: bool = True) -> ModelConfig:
    """Our configuration for one with the released field names."""
    vision, text, whole = config["vision_cfg"], config["text_cfg"], config["text_coarse_cfg"]
    width = vision["embed_dim"]
    return ModelConfig(
        name=config.get("name", "caft_reference"),
        embed_dim=config["embed_dim"],
        init_logit_bias=config.get("init_logit_bias", -10.0),
        mask_dead_superpixels=not reference_quirks,
        image=ImageConfig(
            image_size_px=vision["image_size"],
            stem_widths=(width // 8, width // 4, width // 2, width),
            width=width,
            heads=vision["num_heads"],
            mlp_ratio=vision["mlp_ratio"],
            group_depths=tuple(vision["depth"]),
            segments=tuple(vision["num_clusters"]),
            superpixels=SuperpixelConfig(),
        ),
        text=TextConfig(
            vocab_size=text["vocab_size"],
            context_length=text["context_length"],
            width=text["width"],
            heads=text["heads"],
            layers=text["layers"],
            whole_layers=whole["layers"],
            whole_heads=whole["heads"],
            chunks=whole["context_length"],
        ),
    )


def load_reference_weights(model: CAFT, state_dict: Mapping[str, Tensor]) -> None:
    """Copy released weights into `model`, accounting for every key on both sides."""
    depths = model.config.image.group_depths
    ours = dict(model.state_dict())
    surplus: list[str] = []
    for key, value in state_dict.items():
        key = key.removeprefix("module.")
        if key.startswith(SUPERPIXEL_PREFIX) or key in UNUSED_KEYS:
            continue
        targets = _split_packed(_our_key(key, depths), value)
        for name, tensor in targets.items():
            if name not in ours:
                surplus.append(key)
                continue
            slot = ours.pop(name)
            if slot.numel() != tensor.numel():
                raise CheckpointError(
                    f"released key '{key}' has shape {tuple(tensor.shape)}, "
                    f"the model's '{name}' has {tuple(slot.shape)}: wrong configuration?"
                )
            with torch.no_grad():
                slot.copy_(tensor.reshape(slot.shape))
    if surplus or ours:
        raise CheckpointError(
            f"released weights do not fit: surplus keys {sorted(surplus)}, missing {sorted(ours)}"
        )


def _our_key(key: str, depths: tuple[int, ...]) -> str:
    for released, name in sorted(_DIRECT.items(), key=lambda item: -len(item[0])):
        if key == released or key.startswith(released + "."):
            return name + key[len(released) :]
    if match := re.match(r"visual\.patch_embed\.proj\.(.+)", key):
        return f"image_encoder.stem.{match[1]}"
    if match := re.match(r"visual\.blocks\.(\d+)\.(.+)", key):
        group, place = 0, int(match[1])
        while place >= depths[group]:
            place, group = place - depths[group], group + 1
        return f"image_encoder.groups.{group}.{place}.{_rename(match[2], _BLOCK)}"
    if match := re.match(r"visual\.pools\.(\d+)\.pool_block\.(.+)", key):
        return f"image_encoder.pools.{match[1]}.{_rename(match[2], _POOL)}"
    if match := re.match(r"transformer\.resblocks\.(\d+)\.(.+)", key):
        return f"part_text_encoder.blocks.{match[1]}.{_rename(match[2], _BLOCK)}"
    if match := re.match(r"paragraph_encoder\.transformer\.resblocks\.(\d+)\.(.+)", key):
        return f"whole_text_encoder.blocks.{match[1]}.{_rename(match[2], _BLOCK)}"
    return key


def _rename(rest: str, table: Mapping[str, str]) -> str:
    for released, name in table.items():
        if rest.startswith(released):
            return name + rest[len(released) :]
    return rest


def _split_packed(name: str, value: Tensor) -> dict[str, Tensor]:
    """The pooling attention's packed q, k, v projections become three; others pass through."""
    if match := re.match(r"visual_proj\.attn\.in_proj_(weight|bias)", name):
        q, k, v = value.chunk(3, dim=0)
        prefix = "attention_pool.to_"
        return {
            f"{prefix}{letter}.{match[1]}": t for letter, t in zip("qkv", (q, k, v), strict=True)
        }
    return {name: value}
