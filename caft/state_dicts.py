"""State dicts as training loops save them: nested, and with the prefixes of wrappers.
Both readers of weights, ours and the one of released files, pass through here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from caft.errors import CheckpointError

NESTS = ("state_dict", "model_state_dict", "model", "module")  # keys that hold a state dict
# Components of a name that data-parallel wrappers, compilation and recomputation add.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def plain_weights(content: Any) -> dict[str, Tensor]:
    """The tensors of a state dict, under names without wrappers; empty where there are none.

    Args:
        content: a state dict, or what holds one under `NESTS`, also several levels down. Optimiser
            state, epoch and the like are left alone.

    Raises:
        CheckpointError: two keys are the same without their prefixes.
    """
    found: dict[str, Tensor] = {}
    for key, value in _innermost(content).items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            continue
        name = ".".join(part for part in key.split(".") if part not in WRAPPERS)
        if name in found:
            raise CheckpointError(f"'{name}' is there twice, with and without a wrapper's prefix")
        found[name] = value
    return found


def misfit(key: str, value: Tensor, slot: Tensor) -> str | None:
    """Why a tensor cannot be copied into `slot` whatever its shape, or None."""
    if value.is_meta or value.layout != torch.strided:
        return f"'{key}' is no dense tensor"
    if slot.is_floating_point() and not value.is_floating_point():
        return f"'{key}' is {str(value.dtype).removeprefix('torch.')}, not a float"
    return None


def _innermost(content: Any, levels: int = len(NESTS)) -> Mapping[Any, Any]:
    """The mapping with tensors that lies deepest under `NESTS`; loops keep single tensors, such as
    a generator's state, beside it."""
    if not isinstance(content, Mapping):
        return {}
    if levels:
        for nest in NESTS:
            if found := _innermost(content.get(nest), levels - 1):
                return found
    return content if any(isinstance(value, Tensor) for value in content.values()) else {}
