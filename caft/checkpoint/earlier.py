"""Reads the configuration of a checkpoint from before some key existed as what was true of it then.
Behind load_model and whatever else compares checkpoints; new ones hold every key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from caft.checkpoint.released import RELEASED_SUFFIXES
from caft.config import merged

# What a configuration without the key meant: of a model trained here, and of a released file that
# was converted to a folder.
TRAINED_HERE: dict[str, Any] = {"unit_queries": False, "text": {"sentences": "default"}}
RELEASED: dict[str, Any] = {"unit_queries": True, "text": {"sentences": "reference"}}


def completed(config: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's configuration with the keys that it was written without.

    Args:
        manifest: of the checkpoint's folder; empty for a file alone.
    """
    return merged(RELEASED if _was_released(config, manifest) else TRAINED_HERE, config)


def _was_released(config: Mapping[str, Any], manifest: Mapping[str, Any]) -> bool:
    source = manifest.get("converted_from")
    if isinstance(source, Mapping):
        return PurePath(str(source.get("name"))).suffix in RELEASED_SUFFIXES
    if "step" in manifest:  # the train stage wrote it
        return False
    # An export of such a folder, or its weights alone: both quirks together come from there.
    image = config.get("image")
    superpixels = image.get("superpixels") if isinstance(image, Mapping) else None
    return (
        config.get("mask_dead_superpixels") is False
        and isinstance(superpixels, Mapping)
        and superpixels.get("unnormalise_with") == "imagenet"
    )
