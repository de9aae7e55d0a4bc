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

from caft.checkpoint.pickles import check_pickles
from caft.errors import CAFTError, CheckpointError, ConfigError
from caft.model import CAFT
from caft.reference import from_reference, infer_config
from caft.state_dicts import NESTS, plain_weights

RELEASED_SUFFIXES = (".pt", ".pth", ".bin")


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
    """The weights in a released file, without running any code in it, under its own keys but for
    the prefixes of wrappers; see `caft.state_dicts.plain_weights`.

    Raises:
        CheckpointError: the file is damaged, holds no weights, or needs more than tensors and
            plain values to be read.
    """
    check_pickles(path)
    try:
        # Mapped into memory, so that optimiser state is not even read; old formats cannot be.
        mapped = zipfile.is_zipfile(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged pickle may fail in any way
        raise CheckpointError(f"{path}: {_reason(error)}") from None
    try:
        weights = plain_weights(content)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    for key, value in weights.items():
        if value.layout != torch.strided or value.is_meta:
            continue  # named when it is met
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(f"{path}: '{key}' has a shape larger than what is stored of it")
    if not weights:
        nests = ", ".join(f"'{nest}'" for nest in NESTS)
        raise CheckpointError(f"{path}: holds no weights, neither at its top nor in {nests}")
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
            f"if you trust the file, save its state dict alone and load that"
        )
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    first_line = first_line.removeprefix("Weights only load failed. ").partition("In PyTorch 2.6")[
        0
    ]
    if not first_line:  # PyTorch's advice is to run what the file holds
        first_line = "it holds more than tensors and plain values, or is damaged"
    return f"cannot be read as a PyTorch file of weights: {first_line}"
