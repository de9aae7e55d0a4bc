"""Scores how well images and captions agree, by one of our checkpoints.
A filter that needs a model: it runs in actors of its own, once chunks are decoded and split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import caft
from caft.errors import CheckpointError, ConfigError, DataError
from caft.model import CAFT
from pipelines import storage
from pipelines.data.config import SimilarityFilter
from pipelines.data.filters import longest_caption


class SimilarityScorer:
    """Holds the model, on a GPU if `gpus_per_actor` asks for one."""

    def __init__(self, config: SimilarityFilter) -> None:
        """Load the checkpoint.

        Raises:
            CheckpointError: it is missing, damaged or unfinished.
            ConfigError: its model has no embeddings of whole images and captions.
        """
        self._config = config
        with storage.opened(config.checkpoint) as local:
            self._model = caft.load_model(local)
        if not self._model.config.losses.has_whole:
            raise ConfigError(
                f"filters.similarity.checkpoint: {config.checkpoint} was trained without a whole "
                "loss, so its whole images and captions cannot be compared; name another"
            )
        self._model.to("cuda" if config.gpus_per_actor > 0 else "cpu")

    def __call__(self, rows: Sequence[dict[str, Any]]) -> np.ndarray:
        """Cosines (N,) float32 of the rows' whole images with their longest captions.

        Rows have `url`, `image` (encoded bytes) and `captions`; they are scored in batches of
        `batch_size`.

        Raises:
            DataError: an image that cannot be decoded.
            CheckpointError: the model gives features that are not numbers.
        """
        size = self._config.batch_size
        batches = [self._cosines(rows[n : n + size]) for n in range(0, len(rows), size)]
        cosines = torch.cat(batches).numpy() if batches else np.empty(0, np.float32)
        bad = ~np.isfinite(cosines)
        if bad.any():
            raise CheckpointError(
                f"{self._config.checkpoint}: gives features that are not numbers, first for "
                f"{rows[int(bad.argmax())]['url']}; training has diverged, name an earlier one"
            )
        return cosines

    @torch.inference_mode()
    def _cosines(self, rows: Sequence[dict[str, Any]]) -> Tensor:
        model = self._model
        pixels = torch.stack([_pixels(row, model) for row in rows])
        tokens = model.tokenize_captions([longest_caption(row["captions"]) for row in rows])
        images = model.encode_image(pixels.to(model.device)).whole  # (B, D)
        texts = model.encode_text(tokens).whole  # (B, D)
        return F.cosine_similarity(images.float(), texts.float()).cpu()


def dissimilar(cosine: float, config: SimilarityFilter) -> str | None:
    """What is wrong with a row of this cosine, as a reject's detail says it, or None."""
    return f"cosine {cosine:.4f}" if cosine < config.min_cosine else None


def _pixels(row: dict[str, Any], model: CAFT) -> Tensor:
    try:
        return model.preprocess(row["image"])
    except DataError as error:
        raise DataError(f"{row['url']}: {error}") from None
