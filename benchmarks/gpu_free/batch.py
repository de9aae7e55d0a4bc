"""A worker's batch of random images and texts, as long as those of DreamLIP: for steps whose cost
is asked, not what they learn. The fake device's step and the acceptance of a real one take it."""

from __future__ import annotations

import numpy as np
import torch

from caft.config import ModelConfig
from pipelines.train.ingest import Batch

MEAN_TOKENS, SPREAD, SHORTEST = 33, 12, 6
PARTS = 8


def make_batch(images: int, maps: str, model: ModelConfig, seed: int = 0) -> Batch:
    """`images` of the size that `model` reads, each with `PARTS` texts.

    Args:
        maps: superpixels stored with the images: 'all', 'some' or 'none' of them.
    """
    rng = np.random.default_rng(seed)
    side, longest = model.image.image_size_px, model.text.context_length
    end = model.text.vocab_size - 1
    lengths = rng.normal(MEAN_TOKENS, SPREAD, images * PARTS).astype(int).clip(SHORTEST, longest)
    tokens = np.zeros((images * PARTS, longest), dtype=np.int64)
    for row, length in zip(tokens, lengths, strict=True):
        row[: length - 1] = rng.integers(1, end - 1, length - 1)
        row[length - 1] = end
    stored = None
    if maps != "none":
        cells = rng.integers(0, (side // 16) ** 2, (images, side, side)).astype(np.int16)
        if maps == "some":
            cells[::7] = -1
        stored = torch.from_numpy(cells)
    pixels = torch.from_numpy(rng.integers(0, 256, (images, 3, side, side), dtype=np.uint8))
    width = int(lengths.max())
    return Batch(
        pixels,
        stored,
        torch.from_numpy(tokens[:, :width]).view(images, PARTS, width),
        tuple(map(str, range(images))),
    )
