"""Which row is in which step: an epoch's order as pure arithmetic on row groups.
Independent of the number of workers; a step's rows can be found without reading the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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
