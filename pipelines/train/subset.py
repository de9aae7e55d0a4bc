"""A random part of a split to train on, found from keys alone: nothing is copied.
Opened by the driver; each decoding task then knows by itself which rows belong to it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from caft.errors import DataError
from pipelines import storage
from pipelines.data.dataset import Dataset
from pipelines.train.config import SubsetConfig


@dataclass(frozen=True)
class Subset:
    """The rows whose rank is at most `last`. Ranks depend on seed and key, so that the parts of one
    seed are nested, and a row stays in its part wherever it lies."""

    seed: int
    last: int

    def mask(self, keys: pa.ChunkedArray) -> pa.Array:
        """Which of n keys belong to it, n booleans."""
        return pa.array(_ranks(keys.to_pylist(), self.seed) <= self.last)


def open_subset(dataset: Dataset, split: str, config: SubsetConfig | None) -> Subset | None:
    """The part of `split` that has exactly `config.rows` rows; None without a configuration.

    Raises:
        DataError: the split has fewer rows.
    """
    if config is None:
        return None
    shares = []
    for entry in dataset.files:
        filesystem, path = storage.filesystem(storage.join(dataset.path, entry.name))
        table = pq.read_table(
            path, filesystem=filesystem, columns=["key"], filters=[("split", "=", split)]
        )
        shares.append(_ranks(table["key"].to_pylist(), config.seed))
    ranks = np.concatenate(shares)
    if len(ranks) < config.rows:
        raise DataError(
            f"{dataset.path}: split '{split}' has {len(ranks):,} rows, fewer than subset.rows "
            f"{config.rows:,}; lower it or add data"
        )
    return Subset(config.seed, int(np.partition(ranks, config.rows - 1)[config.rows - 1]))


def _ranks(keys: Iterable[str], seed: int) -> np.ndarray:
    """A number for each key that looks random, uint64."""
    digests = (hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(b"".join(digests), dtype=np.uint64)
