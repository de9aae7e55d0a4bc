"""Models of the reference's released files.
Behind load_model; caft.torch_files reads the weights, caft.reference maps them to this model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caft.errors import CAFTError, CheckpointError, ConfigError
from caft.model import CAFT
from caft.reference import from_reference, infer_config
from caft.torch_files import read_released


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
