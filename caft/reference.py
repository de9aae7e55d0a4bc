"""Maps the released reference checkpoints to this model: configuration names and weight keys.
Used by load_model for released files, and by the golden-number tests."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from caft.config import ImageConfig, ModelConfig, TextConfig, validate
from caft.errors import CheckpointError, ConfigError
from caft.model import CAFT
from caft.state_dicts import misfit, plain_weights

SUPERPIXEL_PREFIX = "visual.superpixel_generator."
UNUSED_KEYS = (
    "visual.pe_token",  # a position for cls that stays zero
    *(f"{SUPERPIXEL_PREFIX}pred_mask{n}." for n in (1, 2, 3)),  # heads that only training used
)

# Fields that the released configurations hold and this model has no choice in.
_FIXED_VISION = {
    "patchify_stem": "ConvStemV1",
    "global_pool": "cls",
    "qkv_bias": True,
    "norm_layer_eps": 1e-6,
    "fill_dead_tokens": True,
    "hierarchy_flair": True,
}

# Ours -> released, by the longest beginning of a name.
_TOP = {
    "part_text_encoder.positions": "positional_embedding",
    "part_text_encoder.token_embedding.": "token_embedding.",
    "part_text_encoder.norm.": "ln_final.",
    "part_log_scale": "logit_scale",
    "part_bias": "logit_bias",
    "whole_log_scale": "logit_scale_coarse",
    "whole_bias": "logit_bias_coarse",
    "fine_projection": "image_post.proj",
    "coarse_projection": "image_post_coarse.proj",
    "part_projection": "text_post.proj",
    "whole_projection": "text_post_coarse.proj",
    "image_encoder.cls_token": "visual.cls_token",
    "image_encoder.positions": "visual.pos_embed",
    "image_encoder.norm_coarse.": "visual.norm.",
    "image_encoder.norm_fine.": "visual.norm_fine.",
    "image_encoder.stem.": "visual.patch_embed.proj.",
    "attention_pool.to_q.": "visual_proj.attn.in_proj_",
    "attention_pool.to_k.": "visual_proj.attn.in_proj_",
    "attention_pool.to_v.": "visual_proj.attn.in_proj_",
    "attention_pool.proj.": "visual_proj.attn.out_proj.",
    "attention_pool.norm_q.": "visual_proj.ln_q.",
    "attention_pool.norm_k.": "visual_proj.ln_k.",
    "attention_pool.norm_v.": "visual_proj.ln_v.",
    "whole_text_encoder.cls_token": "paragraph_encoder.cls_embed",
    "whole_text_encoder.positions": "paragraph_encoder.positional_embedding",
    "whole_text_encoder.norm.": "paragraph_encoder.ln_final.",
    "whole_text_encoder.adapter_scale": "paragraph_encoder.adapter.ls.gamma",
    "whole_text_encoder.adapter.0.": "paragraph_encoder.adapter.mlp.c_fc.",
    "whole_text_encoder.adapter.2.": "paragraph_encoder.adapter.mlp.c_proj.",
    "superpixel_network.": SUPERPIXEL_PREFIX,
}
_VISION_BLOCK = {
    "norm1.": "norm1.",
    "attn.": "attn.",
    "norm2.": "norm2.",
    "expand.": "mlp.fc1.",
    "contract.": "mlp.fc2.",
}
_TEXT_BLOCK = {
    "norm1.": "ln_1.",
    "attn.qkv.": "attn.in_proj_",
    "attn.proj.": "attn.out_proj.",
    "norm2.": "ln_2.",
    "expand.": "mlp.c_fc.",
    "contract.": "mlp.c_proj.",
}
_POOL = {
    "group_bias": "centroid_fc.bias",
    "group_norm.": "centroid_fc.norm.",
    "group_attn.": "centroid_fc.attn.",
    "expand.": "fc1.",
    "contract.": "fc2.",
}
_PACKED_ORDER = "qkv"  # of the pooling attention's in_proj


def from_reference(
    state_dict: Mapping[str, Tensor], config: Mapping[str, Any], reference_quirks: bool = True
) -> CAFT:
    """Build a CAFT from a released state dict and configuration; it is in eval mode.

    Args:
        state_dict: weights under the released key names, also nested or with the prefixes of
            wrappers (`caft.state_dicts.plain_weights`). Without a superpixel network among
            them, superpixels come from SEEDS.
        config: the released configuration (`embed_dim`, `vision_cfg`, `text_cfg`, ...).
        reference_quirks: keep dead superpixels, give the superpixel network its colours and
            normalise what queries the attention pool as the reference does, so that scores match.

    Raises:
        CheckpointError: a key is missing, surplus or of another shape; all of them are named.
        ConfigError: a field of `config` is missing or has a value that this model cannot take.
    """
    state_dict = plain_weights(state_dict)
    has_network = any(key.startswith(SUPERPIXEL_PREFIX) for key in state_dict)
    model = CAFT(reference_config(config, reference_quirks, has_network)).eval()
    load_reference_weights(model, state_dict)
    return model


def reference_config(
    config: Mapping[str, Any], reference_quirks: bool = True, superpixel_network: bool = False
) -> ModelConfig:
    """Our configuration for one with the released field names.

    Raises:
        ConfigError: a field is missing or has a value that this model cannot take.
    """
    try:
        vision, text, whole = config["vision_cfg"], config["text_cfg"], config["text_coarse_cfg"]
        for field, only in _FIXED_VISION.items():
            if vision.get(field, only) != only:
                raise ConfigError(f"vision_cfg.{field}: must be {only!r} (got {vision[field]!r})")
        width = vision["embed_dim"]
        ours = {
            "name": config.get("name", "caft_reference"),
            "embed_dim": config["embed_dim"],
            "init_logit_bias": config.get("init_logit_bias", -10.0),
            "mask_dead_superpixels": not reference_quirks,
            "unit_queries": reference_quirks,
            "image": {
                "image_size_px": vision["image_size"],
                "preprocess": "crop",
                "stem_widths": [width // 8, width // 4, width // 2, width],
                "width": width,
                "heads": vision["num_heads"],
                "mlp_ratio": vision["mlp_ratio"],
                "group_depths": vision["depth"],
                "segments": vision["num_clusters"],
                "superpixels": _superpixels(superpixel_network, reference_quirks),
            },
            "text": {
                "vocab_size": text["vocab_size"],
                "context_length": text["context_length"],
                "width": text["width"],
                "heads": text["heads"],
                "layers": text["layers"],
                "whole_layers": whole["layers"],
                "whole_heads": whole["heads"],
                "chunks": whole["context_length"],
                "sentences": "reference",
            },
        }
    except KeyError as error:
        raise ConfigError(f"released configuration: no field {error}") from None
    return validate(ModelConfig, ours, source="released configuration")


def infer_config(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """The released configuration of a state dict: sizes from its shapes, the rest as in CAFT-B.

    Heads, groups of blocks and numbers of segments leave no trace in a shape. Where a key is
    missing, CAFT-B's size stands in for it, so that loading can name all that is missing.

    Raises:
        CheckpointError: these are no weights of CAFT, or their blocks do not make CAFT-B's groups.
    """
    weights = plain_weights(state_dict)
    if not any(key.startswith("visual.pools.") for key in weights):
        first = next(iter(weights), "")
        raise CheckpointError(f"no weights of CAFT: no key 'visual.pools...'; it has '{first}' ...")

    def size(key: str, dim: int, otherwise: int) -> int:
        shape = weights[key].shape if key in weights else ()
        return shape[dim] if -len(shape) <= dim < len(shape) else otherwise

    def layers(prefix: str) -> int:
        pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
        return len({match[1] for match in map(pattern.match, weights) if match})

    image, text = ImageConfig(), TextConfig()
    depth, groups = layers("visual.blocks."), image.group_depths
    if depth != sum(groups):
        raise CheckpointError(
            f"{depth} blocks 'visual.blocks.N', CAFT-B's groups of {', '.join(map(str, groups))} "
            f"need {sum(groups)}; give the configuration"
        )
    cells = (image.image_size_px // image.stem_stride) ** 2
    width = size("visual.cls_token", -1, image.width)
    hidden = size("visual.blocks.0.mlp.fc1.weight", 0, int(width * image.mlp_ratio))
    return {
        "embed_dim": size("image_post.proj", 1, ModelConfig().embed_dim),
        "vision_cfg": {
            "image_size": math.isqrt(size("visual.pos_embed", 1, cells)) * image.stem_stride,
            "embed_dim": width,
            "num_clusters": list(image.segments),
            "depth": list(groups),
            "num_heads": image.heads,
            "mlp_ratio": hidden / width,
        },
        "text_cfg": {
            "context_length": size("positional_embedding", 0, text.context_length),
            "vocab_size": size("token_embedding.weight", 0, text.vocab_size),
            "width": size("positional_embedding", 1, text.width),
            "heads": text.heads,
            "layers": layers("transformer.resblocks.") or text.layers,
        },
        "text_coarse_cfg": {
            "context_length": size("paragraph_encoder.positional_embedding", 1, text.chunks + 1)
            - 1,
            "heads": text.whole_heads,
            "layers": layers("paragraph_encoder.transformer.resblocks.") or text.whole_layers,
        },
    }


def load_reference_weights(model: CAFT, state_dict: Mapping[str, Tensor]) -> None:
    """Copy released weights into `model`, accounting for every key on both sides.

    Raises:
        CheckpointError: keys are missing, surplus or of another shape; all of them are named.
    """
    weights = plain_weights(state_dict)
    problems, used = [], set()
    for name, slot in model.state_dict().items():
        key = _released_key(name, model.config.image.group_depths)
        used.add(key)
        if key not in weights:
            problems.append(f"missing '{key}'")
            continue
        value = weights[key]
        if problem := misfit(key, value, slot):
            problems.append(problem)
            continue
        match = re.match(r"attention_pool\.to_(.)", name)
        if match and value.dim() and len(value) % len(_PACKED_ORDER) == 0:
            value = value.chunk(len(_PACKED_ORDER))[_PACKED_ORDER.index(match[1])]
        if not _same_layout(value, slot):
            problems.append(f"'{key}' is {tuple(value.shape)}, not {tuple(slot.shape)}")
            continue
        with torch.no_grad():
            slot.copy_(value.reshape(slot.shape))
    surplus = [key for key in weights if key not in used and not key.startswith(UNUSED_KEYS)]
    problems += [f"surplus '{key}'" for key in surplus]
    if problems:
        # A packed tensor is missed three times but said once.
        raise CheckpointError(f"released weights do not fit: {'; '.join(dict.fromkeys(problems))}")


def _superpixels(network: bool, reference_quirks: bool) -> dict[str, Any]:
    if not network:
        return {"method": "seeds"}
    return {"method": "sfcn", "unnormalise_with": "imagenet" if reference_quirks else "clip"}


def _released_key(name: str, depths: tuple[int, ...]) -> str:
    """The released key that holds the weights of `name`."""
    if match := re.match(r"image_encoder\.groups\.(\d+)\.(\d+)\.(.+)", name):
        place = sum(depths[: int(match[1])]) + int(match[2])
        return f"visual.blocks.{place}.{_renamed(match[3], _VISION_BLOCK)}"
    if match := re.match(r"image_encoder\.pools\.(\d+)\.(.+)", name):
        return f"visual.pools.{match[1]}.pool_block.{_renamed(match[2], _POOL)}"
    if match := re.match(r"(part|whole)_text_encoder\.blocks\.(\d+)\.(.+)", name):
        prefix = "paragraph_encoder." * (match[1] == "whole")
        return f"{prefix}transformer.resblocks.{match[2]}.{_renamed(match[3], _TEXT_BLOCK)}"
    return _renamed(name, _TOP)


def _renamed(name: str, table: Mapping[str, str]) -> str:
    for ours in sorted(table, key=len, reverse=True):
        if name.startswith(ours):
            return table[ours] + name[len(ours) :]
    return name


def _same_layout(value: Tensor, slot: Tensor) -> bool:
    """Equal shapes but for dimensions of one and for the position grid, which is flat there."""
    shapes = [value.shape, slot.shape, slot.flatten(0, 1).shape if slot.dim() > 2 else slot.shape]
    theirs, ours, flat = ([size for size in shape if size != 1] for shape in shapes)
    return theirs in (ours, flat)
