"""A control that begins with the towers of OpenAI's CLIP or of SigLIP, as a checkpoint folder.
Behind `python -m caft.checkpoint towers`; a training then starts from the folder."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from caft.checkpoint import require_new, write_checkpoint
from caft.checkpoint.clip_keys import openai_key, with_openai_keys
from caft.config import FlatImageConfig, load_model_config
from caft.errors import CheckpointError, ConfigError
from caft.image_encoder import positions_at
from caft.model import CAFT
from caft.state_dicts import plain_weights
from caft.torch_files import read_released
from caft.transforms import channel_statistics

IMAGE, TEXT = "image_encoder.", "part_text_encoder."
CLASS, POSITIONS, STEM_BIAS = (
    "visual.class_embedding",
    "visual.positional_embedding",
    "visual.conv1.bias",
)
# Heads of the towers, where the model has one of its own for them.
HEADS = {
    "coarse_projection": "visual.proj",
    "fine_projection": "visual.proj",
    "whole_projection": "text_projection",
    "part_projection": "text_projection",
    "whole_log_scale": "logit_scale",
    "part_log_scale": "logit_scale",
}


def write_towers(file: str | Path, folder: str | Path, recipe: str) -> tuple[CAFT, list[str]]:
    """Write a checkpoint folder of `recipe` whose towers have the weights of `file`.

    CLIP gives both towers, its projections and its scale; SigLIP, whose texts have another
    vocabulary, gives the image tower's patches, positions and blocks. The rest begins at random.

    Args:
        file: `.safetensors`, `.pt`, `.pth` or `.bin` with the keys of OpenAI, open_clip or
            transformers; no code in it is run. TorchScript archives are refused.
        folder: new or empty.
        recipe: a control with a flat image encoder, such as `clip_b16` or `flair_b16`.

    Returns:
        The model, in eval mode, and the names of the parameters that begin at random.

    Raises:
        ConfigError: the recipe has no flat image encoder.
        CheckpointError: no such file, no CLIP or SigLIP in it, or towers of other sizes.
        StorageError: `folder` cannot be written.
    """
    file, folder = Path(file), Path(folder)
    config = load_model_config(recipe)
    if not isinstance(config.image, FlatImageConfig):
        raise ConfigError(f"{recipe}: has no flat image encoder; name clip_b16 or flair_b16")
    require_new(folder)
    weights = with_openai_keys(_read(file))
    if not {POSITIONS, "visual.conv1.weight"} <= weights.keys():
        raise CheckpointError(f"{file}: has no image tower under the keys of CLIP or SigLIP")
    is_clip = CLASS in weights
    config = config.model_copy(update={"activation": "quick_gelu" if is_clip else "gelu_tanh"})
    model = CAFT(config).eval()
    try:
        taken = _clip(model, weights) if is_clip else _siglip(model, weights)
        fresh = _fill(model, taken)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None
    write_checkpoint(model, folder, {"towers_from": file.name})
    return model, fresh


def _read(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file")
    if file.suffix != ".safetensors":
        return read_released(file)
    try:
        return plain_weights(load_file(file))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: damaged, or no safetensors: {error}") from None


def _clip(model: CAFT, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names of what CLIP's file has."""
    names = [name for name in model.state_dict() if name.startswith((IMAGE, TEXT))]
    taken = {name: weights[key] for name in names if (key := _key(name)) in weights}
    taken |= {name: weights[key] for name, key in HEADS.items() if key in weights}
    # Ours gives the class token no position of its own.
    taken[f"{IMAGE}cls_token"] = weights[CLASS].float() + weights[POSITIONS][0].float()
    taken[f"{IMAGE}positions"] = _positions(model, weights[POSITIONS][1:])
    return taken


def _siglip(model: CAFT, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image tower, brought to CLIP's normalisation of pixels: SigLIP's is 2 p - 1."""
    names = [name for name in model.state_dict() if name.startswith(IMAGE)]
    taken = {name: weights[key] for name in names if (key := _key(name)) in weights}
    mean, std = channel_statistics("clip", torch.device("cpu"))
    stem = weights["visual.conv1.weight"].float()
    taken[f"{IMAGE}patch_embedding.weight"] = stem * 2 * std
    shift = (stem * (2 * mean - 1)).sum(dim=(1, 2, 3))
    bias = weights.get(STEM_BIAS, torch.zeros(len(stem))).float()
    # Patches do not overlap, so that what is constant in a patch can be part of its position.
    taken[f"{IMAGE}positions"] = _positions(model, weights[POSITIONS]) + shift + bias
    return taken


def _key(name: str) -> str:
    special = {f"{IMAGE}cls_token": CLASS, f"{IMAGE}positions": POSITIONS}
    return special.get(name) or openai_key(name)


def _positions(model: CAFT, table: Tensor) -> Tensor:
    """Positions (patches, W) as a grid of the size that the model has."""
    grid = isqrt(len(table))
    slot = model.state_dict()[f"{IMAGE}positions"]
    if grid * grid != len(table) or table.shape[1] != slot.shape[-1]:
        raise CheckpointError(f"'{POSITIONS}' is {tuple(table.shape)}, not a square of patches")
    return positions_at(table.float().view(grid, grid, -1), *slot.shape[:2])


@torch.no_grad()
def _fill(model: CAFT, taken: Mapping[str, Tensor]) -> list[str]:
    """Copy what was taken; the names of the rest."""
    slots, problems = model.state_dict(), []
    for name, value in taken.items():
        if name not in slots:
            continue
        if value.numel() != slots[name].numel():
            shapes = f"{tuple(value.shape)}, {model.config.name} has {tuple(slots[name].shape)}"
            problems.append(f"{name} is {shapes}")
            continue
        slots[name].copy_(value.reshape(slots[name].shape))
    if problems:
        raise CheckpointError("; ".join(problems[:5]))
    return [name for name in slots if name not in taken]
