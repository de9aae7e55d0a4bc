"""What the evaluate stage asks of a model, and what adapters share.
Each adapter derives from `Adapter`; the package itself finds the one for a checkpoint's name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from caft.captions import Rule
from caft.config import PictureRule
from caft.errors import CheckpointError, ConfigError, DataError
from caft.extras import how_to_install
from caft.preprocessing import decode_as_published, squared
from caft.scoring import FunctionScorer, Scorer, cosine_scores

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
    # What its checkpoint's manifest says of its training data and recipe, where there is one.
    training: Mapping[str, Any] = MappingProxyType({})

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
            f"the same build: {how_to_install(extra)}, with torch's index"
        )
    return ConfigError(f"checkpoint: {reason}; to score such models, {how_to_install(extra)}")


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
