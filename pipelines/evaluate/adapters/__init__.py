"""Finds the model behind a checkpoint's name.
CAFT comes first; open_clip, transformers and models of your own go through the same harness."""

from __future__ import annotations

import importlib
from pathlib import PurePath

from caft.errors import ConfigError
from caft.torch_files import RELEASED_SUFFIXES, read_released
from pipelines import storage
from pipelines.evaluate.adapters.base import Adapter, PixelPreprocess, Preprocess, fingerprint_of

__all__ = ["Adapter", "PixelPreprocess", "Preprocess", "fingerprint_of", "is_path", "open_adapter"]


def open_adapter(checkpoint: str) -> Adapter:
    """The model behind a checkpoint's name.

    Args:
        checkpoint: a checkpoint folder or file of CAFT; a released `.pt` of FLAIR or with
            Long-CLIP's keys; `hf:NAME_OR_FOLDER` (a CLIP or SigLIP model of transformers);
            `open_clip:MODEL:PRETRAINED`; `python:MODULE:FUNCTION`.

    Raises:
        CheckpointError: it is missing, unfinished or damaged.
        ConfigError: a package is not installed, or the name is not one of those forms.
    """
    kind, _, name = checkpoint.partition(":")
    if kind == "hf":
        from pipelines.evaluate.adapters.transformers_models import TransformersAdapter

        return TransformersAdapter(name)
    if kind == "open_clip":
        from pipelines.evaluate.adapters.open_clip_models import OpenCLIPAdapter

        return OpenCLIPAdapter(name)
    if kind == "python":
        return _from_function(checkpoint, name)
    if PurePath(checkpoint).suffix in RELEASED_SUFFIXES:
        return _from_released(checkpoint)
    from pipelines.evaluate.adapters.own import CAFTAdapter

    return CAFTAdapter(checkpoint)


def _from_released(checkpoint: str) -> Adapter:
    """The model of a file of weights, which its keys tell."""
    from pipelines.evaluate.adapters.flair import FLAIRAdapter, is_flair
    from pipelines.evaluate.adapters.long_clip import LongCLIPAdapter, is_long_clip
    from pipelines.evaluate.adapters.own import CAFTAdapter

    with storage.opened(checkpoint) as file:
        weights = read_released(file) if file.is_file() else {}
        if is_flair(weights):
            return FLAIRAdapter(file, weights)
        if is_long_clip(weights):
            return LongCLIPAdapter(file, weights)
        return CAFTAdapter(str(file))


def is_path(checkpoint: str) -> bool:
    """Whether a checkpoint's name is that of a folder or file."""
    return checkpoint.partition(":")[0] not in ("hf", "open_clip", "python")


def _from_function(checkpoint: str, name: str) -> Adapter:
    module, _, function = name.partition(":")
    try:
        adapter: Adapter = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"checkpoint: '{checkpoint}' cannot be imported ({error}); write "
            "python:MODULE:FUNCTION, with the module on PYTHONPATH of all processes"
        ) from None
    return adapter
