"""Fine-tuning a trained model: which parameters stay, how fast each layer learns, and weights mixed
with those of the start. Plain PyTorch, used by the train stage and `caft.checkpoint mix`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor

from caft.batch_norm import BlockBatchNorm
from caft.errors import CheckpointError, ConfigError
from caft.flat_encoder import FlatImageEncoder
from caft.layers import Blocks
from caft.model import CAFT


def freeze_(model: CAFT, patterns: Sequence[str]) -> list[str]:
    """Exclude all parameters whose name matches one of `patterns` from training, in place.

    A batch norm whose parameters are all frozen keeps its running statistics and normalises by
    them: a frozen module computes the same at every step.

    Args:
        patterns: names as `model.named_parameters()` has them; `*` stands for any characters.

    Returns:
        The names of the parameters that are frozen, sorted.

    Raises:
        ConfigError: a pattern matches no parameter, or nothing is left to train.
    """
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    frozen = set[str]()
    for pattern in patterns:
        matching = {name for name in trained if fnmatchcase(name, pattern)}
        if not matching:
            hint = _hint(pattern, trained)
            raise ConfigError(f"'{pattern}' matches no parameter of the model{hint}")
        frozen |= matching
    if patterns and len(frozen) == len(trained):
        raise ConfigError(f"all {len(trained)} parameters of the model are frozen; name fewer")
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, BlockBatchNorm):
            module.frozen = not any(parameter.requires_grad for parameter in module.parameters())
    return sorted(frozen)


def layer_scales(model: CAFT, decay: float) -> dict[str, float]:
    """The factor on the learning rate of each trained parameter, by its name.

    Layer-wise decay as BEiT fine-tunes (Bao et al., 2022): a layer with n layers of its tower
    above it, the projection included, learns at `decay` to the power n; projections, final norms
    and the scales of the losses learn at 1. The layers of the text tower are those of the part
    encoder, then those of the whole encoder.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    scales = dict.fromkeys(names, 1.0)
    for tower in (_image_layers(model), _text_layers(model)):
        for number, prefixes in enumerate(tower):
            own = [name for name in names if name.startswith(prefixes)]
            scales |= dict.fromkeys(own, decay ** (len(tower) - number))
    return scales


def mixed_weights(
    start: Mapping[str, Tensor], tuned: Mapping[str, Tensor], start_share: float
) -> dict[str, Tensor]:
    """`start_share` of the start's weights and the rest of the fine-tuned ones, in float32: the
    weight-space ensemble of WiSE-FT (Wortsman et al., 2022), which keeps more of what the start
    knew. Tensors that are no floats are those of `tuned`.

    Raises:
        CheckpointError: they are not the tensors of one model.
    """
    for name in sorted(start.keys() ^ tuned.keys()):
        where = "the start" if name in start else "the fine-tuned model"
        raise CheckpointError(f"{name}: only {where} has it; mix checkpoints of one model")
    mixed = {}
    for name, value in tuned.items():
        if start[name].shape != value.shape:
            shapes = f"{tuple(start[name].shape)} and {tuple(value.shape)}"
            raise CheckpointError(f"{name}: has shapes {shapes}; mix checkpoints of one model")
        if value.is_floating_point():
            value = start[name].float().lerp(value.float(), 1 - start_share)
        mixed[name] = value
    return mixed


def _image_layers(model: CAFT) -> list[tuple[str, ...]]:
    """What the names of each layer's parameters start with, from the pixels up."""
    encoder, own = model.image_encoder, "image_encoder."
    if isinstance(encoder, FlatImageEncoder):
        embeddings = ("patch_embedding.", "positions", "cls_token", "norm_in.")
        blocks = [(f"{own}blocks.{n}.",) for n in range(len(encoder.blocks))]
        return [tuple(own + name for name in embeddings), *blocks]
    layers: list[tuple[str, ...]] = [(f"{own}stem.", f"{own}cls_token")]
    for level, group in enumerate(encoder.groups):
        assert isinstance(group, Blocks)
        layers += [(f"{own}groups.{level}.{n}.",) for n in range(len(group))]
        layers[-1] += (f"{own}pools.{level}.",)
    return layers


def _text_layers(model: CAFT) -> list[tuple[str, ...]]:
    part = "part_text_encoder."
    layers: list[tuple[str, ...]] = [(f"{part}token_embedding.", f"{part}positions")]
    layers += [(f"{part}blocks.{n}.",) for n in range(len(model.part_text_encoder.blocks))]
    if hasattr(model, "whole_text_encoder"):
        whole = "whole_text_encoder."
        joining = ("adapter.", "adapter_scale", "cls_token", "positions")
        layers[-1] += (f"{part}norm.", *(whole + name for name in joining))
        blocks = model.whole_text_encoder.blocks
        layers += [(f"{whole}blocks.{n}.",) for n in range(len(blocks))]
    return layers


def _hint(pattern: str, names: Sequence[str]) -> str:
    parts = {".".join(name.split(".")[:n]) for name in names for n in range(1, name.count(".") + 1)}
    near = difflib.get_close_matches(pattern, [*names, *(f"{part}.*" for part in parts)], n=1)
    if near:
        return f"; did you mean '{near[0]}'?"
    towers = sorted({name.split(".")[0] + ".*" for name in names if "." in name})
    return f"; it has {', '.join(towers)}"
