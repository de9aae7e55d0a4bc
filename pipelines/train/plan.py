"""Which row is in which step: an epoch's order as pure arithmetic on row groups.
Independent of the number of workers; a step's rows can be found without reading the others."""

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
class RowGroup:
    """One Parquet row group and how many of its rows belong to the split."""

    file: str
    index: int
    rows: int


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of the split inside one row group."""

    file: str
    row_group: int
    start: int
    stop: int


@dataclass(frozen=True)
class Window:
    """One lane's rows for `steps` consecutive steps: all pieces together, then `order`ed."""

    epoch: int
    first_step: int  # within the epoch
    steps: int
    lane: int
    pieces: tuple[Piece, ...]
    seed: tuple[int, ...]


@dataclass(frozen=True)
class EpochPlan:
    """Cuts each epoch into lanes of equal length, and each lane into shuffle windows.

    Row groups are permuted per epoch and laid end to end; lane l owns the l-th equal range of
    that sequence and supplies global_batch / lanes rows of every step. The fewer than
    global_batch rows that are left over belong to row groups that differ from epoch to epoch.
    """

    row_groups: tuple[RowGroup, ...]
    global_batch: int
    lanes: int
    window_steps: int
    seed: int

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.row_groups)

    @property
    def steps_per_epoch(self) -> int:
        return self.rows // self.global_batch

    @property
    def rows_per_lane_step(self) -> int:
        return self.global_batch // self.lanes

    def windows(self, epoch: int, lane: int, from_step: int = 0) -> list[Window]:
        """The windows of one lane in one epoch that end after `from_step`."""
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.row_groups))
        groups = [self.row_groups[n] for n in order]
        starts = np.concatenate([[0], np.cumsum([group.rows for group in groups])])
        lane_start = lane * self.steps_per_epoch * self.rows_per_lane_step
        windows = []
        for first in range(0, self.steps_per_epoch, self.window_steps):
            steps = min(self.window_steps, self.steps_per_epoch - first)
            if first + steps <= from_step:
                continue
            begin = lane_start + first * self.rows_per_lane_step
            end = begin + steps * self.rows_per_lane_step
            pieces = _pieces(groups, starts, begin, end)
            windows.append(
                Window(epoch, first, steps, lane, pieces, (self.seed, epoch, lane, first))
            )
        return windows


def _pieces(groups: list[RowGroup], starts: np.ndarray, begin: int, end: int) -> tuple[Piece, ...]:
    """The parts of consecutive row groups that cover positions [begin, end)."""
    pieces = []
    place = int(np.searchsorted(starts, begin, side="right")) - 1
    while begin < end:
        group, offset = groups[place], int(starts[place])
        stop = min(end, offset + group.rows)
        if stop > begin:
            pieces.append(Piece(group.file, group.index, begin - offset, stop - offset))
            begin = stop
        place += 1
    return tuple(pieces)


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
