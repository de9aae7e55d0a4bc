"""What the evaluate stage asks of a model, and how one is found by its name.
CAFT comes first; open_clip, transformers and models of your own go through the same harness."""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from caft.captions import Rule
from caft.checkpoint.released import RELEASED_SUFFIXES, read_released
from caft.config import PictureRule
from caft.errors import CheckpointError, ConfigError, DataError
from caft.preprocessing import decode_as_published, squared
from caft.scoring import FunctionScorer, Scorer, cosine_scores
from pipelines import storage

MAX_REASON_CHARS = 200

Preprocess = Callable[[Sequence[Mapping[str, Any]]], dict[str, np.ndarray]]


class Adapter(Protocol):
    """A model to be evaluated. Derive from it, and name a function that makes one as the
    checkpoint: `python:my_package.my_module:make_model`.
    """

    name: str  # what tables and MLflow call it
    fingerprint: str  # changes whenever its features would: of weights, sizes and preprocessing
    # Rule that captions are split by before `encode_texts`; None: each is a text as it was written.
    sentences: Rule | None = "default"
    step: int = 0  # of training, where it is known
    run_id: str = ""  # MLflow run of its training, where it is known

    def preprocess(self) -> Preprocess:
        """A function that is sent to decoding processes, so it holds no weights: rows with `url`,
        `image` (encoded bytes) and `superpixels` (stored map or None) to arrays of as many rows."""
        ...

    def encode_images(self, columns: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """Features of preprocessed images by name; `whole` (B, D) is what the default score
        compares."""
        ...

    def encode_texts(self, captions: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        """Features of captions, each a list of sentences, or of one text where the model reads
        whole texts; the names may differ from the images'."""
        ...

    def scorer(self) -> Scorer:
        """How features are compared; without a better one, by the cosine of `whole`."""
        return FunctionScorer(cosine_scores)

    def to(self, device: torch.device) -> None:
        """Move the weights."""
        ...


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


def unloadable(checkpoint: str, error: Exception) -> CheckpointError:
    """The error for what another library could not load, in its own words if they are few."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return CheckpointError(f"{checkpoint}: cannot be loaded: {lines[0][:MAX_REASON_CHARS]}")


def needs(extra: str, error: Exception) -> ConfigError:
    """The error for a package that an optional extra of this project would have brought, or that
    does not fit the others: torch and torchvision of different builds."""
    reason = " ".join(str(error).split())[:MAX_REASON_CHARS]
    if not isinstance(error, ImportError):
        return ConfigError(
            f"checkpoint: {extra} cannot be imported: {reason}; install torch and torchvision of "
            f"the same build: pip install 'caft[{extra}]' -c constraints.txt, with torch's index"
        )
    return ConfigError(f"checkpoint: {reason}; to score such models, pip install 'caft[{extra}]'")


class PixelPreprocess:
    """Rows to one array `images`, by a function of one uint8 RGB picture (H, W, 3).

    Args:
        rule: by which pictures are made square before; None: they are given as they are.
    """

    def __init__(
        self, transform: Callable[[np.ndarray], np.ndarray], rule: PictureRule | None = None
    ) -> None:
        self._transform = transform
        self._rule = rule

    def shown_by(self, rule: PictureRule) -> PixelPreprocess:
        """The same for a benchmark that shows every model its pictures by one rule."""
        return PixelPreprocess(self._transform, rule)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        pictures = []
        for row in rows:
            try:
                pixels = decode_as_published(row["image"])
                if self._rule is not None:
                    pixels = squared(pixels, min(pixels.shape[:2]), self._rule)
                pictures.append(self._transform(pixels))
            except DataError as error:
                raise DataError(f"{row['url']}: {error}") from None
        return {"images": np.stack(pictures)}


def fingerprint_of(weights: Mapping[str, Tensor], *settings: object) -> str:
    """Digest of a model's weights, and of settings by how they print, addresses left out."""
    printed = "\n".join(map(str, settings))
    digest = hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", printed).encode())
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
