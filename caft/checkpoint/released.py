"""Reads the reference's released files: pickles, of which only tensors and plain values are taken.
Behind load_model; caft.reference maps what is found in them to this model."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from caft.errors import CAFTError, CheckpointError, ConfigError
from caft.model import CAFT
from caft.reference import from_reference, infer_config

RELEASED_SUFFIXES = (".pt", ".pth", ".bin")
NESTED = "state_dict"


def load_released(path: Path, config: Mapping[str, Any] | None = None) -> CAFT:
    """The model of a released file, with the reference's quirks; `config` None: that in a JSON file
    of the same name beside it, else as the shapes tell.

    Raises:
        CheckpointError: see `read_released`, or the weights do not fit; every key is named.
    """
    weights = read_released(path)
    try:
        found = config or _config_beside(path) or infer_config(weights)
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


def _config_beside(path: Path) -> dict[str, Any] | None:
    """The released configuration in `NAME.json` beside `NAME.pt`; None without one."""
    file = path.with_suffix(".json")
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read as JSON: {error}; repair or remove it") from None
    return config if isinstance(config, dict) and "vision_cfg" in config else None


def _reason(error: Exception) -> str:
    if match := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return (
            f"refused, as reading it would call {match[1]}; "
            f"if you trust the file, save its '{NESTED}' alone and load that"
        )
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"cannot be read as a PyTorch file of weights: {first_line}"
