"""Reads the reference's released files: pickles, of which only tensors and plain values are taken.
Behind load_model; caft.reference maps what is found in them to this model."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from caft.errors import CAFTError, CheckpointError
from caft.model import CAFT
from caft.reference import from_reference, infer_config

RELEASED_SUFFIXES = (".pt", ".pth", ".bin")
NESTED = "state_dict"


def load_released(path: Path, config: Mapping[str, Any] | None = None) -> CAFT:
    """The model of a released file, with the reference's quirks; `config` None: from the shapes.

    Raises:
        CheckpointError: see `read_released`, or the weights do not fit; every key is named.
    """
    weights = read_released(path)
    try:
        found = infer_config(weights) if config is None else config
        return from_reference(weights, {"name": path.stem, **found})
    except CAFTError as error:
        raise CheckpointError(f"{path}: {error}") from None


def read_released(path: Path) -> dict[str, Tensor]:
    """The weights in a released file, under its own keys, without running any code in it.

    They may lie under `state_dict`; optimiser state, epoch and the like are left alone.

    Raises:
        CheckpointError: the file is damaged, holds no weights, or needs more than tensors and
            plain values to be read.
    """
    try:
        # Mapped into memory, so that optimiser state is not even read; old formats cannot be.
        mapped = zipfile.is_zipfile(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged pickle may fail in any way
        raise CheckpointError(f"{path}: {_reason(error)}") from None
    if isinstance(content, dict) and isinstance(content.get(NESTED), dict):
        content = content[NESTED]
    weights = {}
    if isinstance(content, dict):
        weights = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not weights:
        raise CheckpointError(f"{path}: holds no weights, neither at its top nor in '{NESTED}'")
    return weights


def _reason(error: Exception) -> str:
    if match := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return (
            f"refused, as reading it would call {match[1]}; "
            f"if you trust the file, save its '{NESTED}' alone and load that"
        )
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"cannot be read as a PyTorch file of weights: {first_line}"
