"""The runs that a law is fitted to: their inputs, errors, families, and what was left out and why.
Between the table and the fits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from caft.errors import DataError
from caft.scaling_law.cooldown import as_cooled
from caft.scaling_law.table import LINE, Row, cell_number, line_list, where

Array = NDArray[np.float64]

ONLY_FAMILY = "all runs"
LOSS = "loss"  # in the name of an error that depends on the batch size
NEAR_CHANCE = 0.9  # of the error of guessing; above it a run has hardly begun to learn
RATE_FROM = 0.9  # errors of 1 at most are taken for rates if one is above it
RANK = re.compile(r"(?:_r|@)(\d+)$", re.IGNORECASE)  # a recall among the first so many


@dataclass(frozen=True)
class Target:
    """What is to be explained: an error as it stands, or 1 - a score."""

    column: str
    is_score: bool = False
    chance: float | None = None  # score of guessing, where it is known
    test_size: str | None = None  # what a score is a mean of: a number, or the name of a column

    @property
    def name(self) -> str:
        return f"1 - {self.column}" if self.is_score else self.column

    @property
    def is_loss(self) -> bool:
        return not self.is_score and LOSS in self.column.lower()


@dataclass(frozen=True)
class Columns:
    """Names of the table's columns; None where there is none."""

    compute: str | None = None
    parameters: str | None = None
    samples: str | None = None
    unique_samples: str | None = None
    family: str | None = None
    group: str | None = None
    batch_size: str | None = None
    schedule: str | None = None  # whether a run was cooled down; see cooldown.py
    loss: str | None = None  # through which errors are predicted too, in two stages
    best_over: tuple[str, ...] = ()  # of runs that differ in these alone, the best one counts
    apart: tuple[str, ...] = ()  # what else tells runs apart; with it, the group does not

    @property
    def inputs(self) -> dict[str, str]:
        return {name: column for name in INPUTS if (column := getattr(self, name))}

    @property
    def axes(self) -> list[str]:
        """Columns that tell runs apart."""
        group = None if self.apart else self.group
        named = (self.family, group, self.batch_size, *self.apart)
        return [*self.inputs.values(), *filter(None, named)]


INPUTS = ("compute", "parameters", "samples", "unique_samples")


@dataclass(frozen=True)
class Runs:
    """n runs of one family."""

    family: str
    inputs: dict[str, Array]  # (n,) each, those of INPUTS that the table has
    error: Array  # (n,)
    groups: NDArray[np.str_] | None = None  # (n,)
    problems: tuple[str, ...] = ()
    noise: Array | None = None  # (n,) standard deviation of log error by the size of the test
    ceiling: float = np.inf  # error of guessing; no law says more
    loss: Array | None = None  # (n,) of each run; NaN where it has none
    lines: tuple[str, ...] = field(default=())  # (n,) of the file


def select_runs(rows: Sequence[Row], path: Path, target: Target, columns: Columns) -> list[Runs]:
    """The runs of a table by family, in the order in which families first appear.

    Left out, and named in `problems`, are runs without a number for the target or an input, near
    chance, without a single error where the test's size is not known, or worse than another that
    differs in `best_over` alone.

    Args:
        rows: as `read_table` gives them.
        path: where they are from, for errors.

    Raises:
        DataError: a column that is not there, a cell that is no number (or no positive one), a
            score outside 0 to 1, one run twice, or a loss of several batch sizes.
    """
    extra = [target.test_size] if target.test_size and not _is_number(target.test_size) else []
    group = [columns.group] if columns.group else []
    more = [name for name in (columns.loss, columns.schedule) if name]
    for name in (target.column, *columns.axes, *group, *columns.best_over, *extra, *more):
        if name not in rows[0]:
            known = ", ".join(column for column in rows[0] if column != LINE)
            raise DataError(f"{path}: no column {name}; it has {known}")
    if not columns.inputs:
        raise DataError(f"{path}: what does the error depend on? name a column of {INPUTS}")
    problems: list[str] = []
    kept = _measured(rows, path, [target.column, *columns.inputs.values(), *extra], problems)
    _check_twice(kept, path)
    problems += _check_batch_sizes(kept, path, target, columns.batch_size)
    errors = [_error(row, path, target) for row in kept]
    if columns.schedule:
        own = [name for name in columns.axes if name not in (columns.group, *columns.best_over)]
        kept, errors = as_cooled(kept, errors, columns.schedule, own, problems)
    kept, errors = _best_of(kept, errors, columns, problems)
    ceiling = _ceiling(target, kept, errors, path, problems)
    kept, errors, noise = _with_test_size(kept, errors, path, target, problems)
    near = [error > NEAR_CHANCE * ceiling for error in errors]
    if any(near):
        problems.append(
            f"{sum(near)} of {len(near)} runs are near chance, with errors above "
            f"{NEAR_CHANCE * ceiling:.3g}; no law is fitted to them: "
            f"{line_list([row for row, is_near in zip(kept, near, strict=True) if is_near])}"
        )
    families: dict[str, list[int]] = {}
    for place, row in enumerate(kept):
        family = row[columns.family] if columns.family else ONLY_FAMILY
        families.setdefault(family, [])
        if not near[place]:
            families[family].append(place)
    numbers = {name: _inputs(kept, path, column) for name, column in columns.inputs.items()}
    losses = None
    if columns.loss and columns.loss != target.column:
        cells = [cell_number(row, path, columns.loss) for row in kept]
        losses = np.array([np.nan if cell is None else cell for cell in cells])
    return [
        Runs(
            family,
            {name: column[places] for name, column in numbers.items()},
            np.array(errors)[places],
            np.array([kept[p][columns.group] for p in places]) if columns.group else None,
            tuple(problems),
            None if noise is None else noise[places],
            ceiling,
            None if losses is None else losses[places],
            tuple(kept[p][LINE] for p in places),
        )
        for family, places in families.items()
    ]


def _measured(
    rows: Sequence[Row], path: Path, names: Sequence[str], problems: list[str]
) -> list[Row]:
    kept = list(rows)
    for name in names:
        empty = [row for row in kept if cell_number(row, path, name) is None]
        if empty:
            problems.append(f"{len(empty)} runs have no {name}: {line_list(empty)}")
            kept = [row for row in kept if row not in empty]
    if not kept:
        raise DataError(f"{path}: no run has {' and '.join(names)}")
    return kept


def _check_twice(rows: Sequence[Row], path: Path) -> None:
    seen: dict[tuple[str, ...], Row] = {}
    for row in rows:
        key = tuple(cell for name, cell in row.items() if name != LINE)
        if key in seen:
            raise DataError(
                f"{where(row, path)}: the same run as line {seen[key][LINE]} in all columns; "
                "remove one of them"
            )
        seen[key] = row


def _best_of(
    rows: list[Row], errors: list[float], columns: Columns, problems: list[str]
) -> tuple[list[Row], list[float]]:
    """Of runs equal in all axes, the best over the columns named, and no point twice."""
    axes = [name for name in columns.axes if name not in columns.best_over]
    best: dict[tuple[object, ...], int] = {}
    for place, row in enumerate(rows):
        key: tuple[object, ...] = tuple(row[name] for name in axes)
        key = key if columns.best_over else (*key, errors[place])
        if key not in best or errors[place] < errors[best[key]]:
            best[key] = place
    places = sorted(best.values())
    if len(places) < len(rows):
        over = (
            f"worse over {', '.join(columns.best_over)}"
            if columns.best_over
            else ("equal to another in all columns named, and in their error: counted once")
        )
        problems.append(f"{len(rows) - len(places)} runs are {over}")
    return [rows[place] for place in places], [errors[place] for place in places]


def _ceiling(
    target: Target, rows: list[Row], errors: list[float], path: Path, problems: list[str]
) -> float:
    """The error of guessing; infinite for what is no rate."""
    rates = not target.is_loss and max(errors) <= 1 and max(errors) > RATE_FROM
    if not (target.is_score or rates or target.chance is not None):
        return np.inf
    if target.chance is not None:
        return 1 - target.chance
    if not target.is_score and not target.column.startswith("1-"):
        problems.append(f"{target.name} is between 0 and 1 and taken for a rate: see --chance")
    rank = RANK.search(target.column)
    sizes = _sizes(rows, path, target)
    return 1 - float(rank[1]) / float(np.median(sizes)) if rank and sizes is not None else 1.0


def _with_test_size(
    rows: list[Row], errors: list[float], path: Path, target: Target, problems: list[str]
) -> tuple[list[Row], list[float], Array | None]:
    """Errors of zero replaced by what a test of that size cannot tell from it (half an error), or
    left out where the size is not known; and each run's chance."""
    sizes = _sizes(rows, path, target)
    zero = [place for place, error in enumerate(errors) if error == 0]
    lines = line_list([rows[place] for place in zero])
    if sizes is None:
        if zero:
            problems.append(
                f"{len(zero)} runs without a single error are left out, which bends the law "
                f"upwards: give the size of the test (--test-size): {lines}"
            )
        kept = [place for place in range(len(errors)) if place not in zero]
        if not kept:
            raise DataError(f"{path}: {target.name} is 0 in all runs; give --test-size")
        return [rows[place] for place in kept], [errors[place] for place in kept], None
    if zero:
        problems.append(f"{len(zero)} runs without a single error count as half a one: {lines}")
    rates = np.array(errors)
    rates = np.where(rates == 0, 0.5 / (sizes + 1), rates)
    inside = np.clip(rates, 0.5 / (sizes + 1), 1 - 0.5 / (sizes + 1))
    return rows, rates.tolist(), np.sqrt((1 - inside) / (inside * sizes))


def _sizes(rows: Sequence[Row], path: Path, target: Target) -> Array | None:
    if target.test_size is None or target.is_loss:  # no share of a test's items
        return None
    if _is_number(target.test_size):
        return np.full(len(rows), float(target.test_size))
    return _inputs(rows, path, target.test_size)


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def _check_batch_sizes(
    rows: Sequence[Row], path: Path, target: Target, column: str | None
) -> list[str]:
    if not target.is_loss:
        return []
    if column is None:
        return [
            f"{target.name} depends on the batch size, which is not known to be one: "
            "name its column (--batch-size)",
        ]
    sizes = sorted(set(_inputs(rows, path, column).tolist()))
    if len(sizes) > 1:
        raise DataError(
            f"{path}: {target.name} of runs with batch sizes {', '.join(f'{s:g}' for s in sizes)} "
            f"(column {column}); a contrastive loss grows with the batch, so fit one size at a "
            "time, or fit a score"
        )
    return []


def _error(row: Row, path: Path, target: Target) -> float:
    value = cell_number(row, path, target.column) or 0.0
    if target.is_score and not 0 <= value <= 1:
        raise DataError(
            f"{where(row, path)}: {target.column} is {value:g}; "
            "a score must be a fraction from 0 to 1, not in per cent"
        )
    if value < 0:
        raise DataError(
            f"{where(row, path)}: {target.column} is {value:g}; a law needs positive numbers, "
            "leave this run out"
        )
    return 1 - value if target.is_score else value


def _inputs(rows: Sequence[Row], path: Path, column: str) -> Array:
    values = []
    for row in rows:
        value = cell_number(row, path, column) or 0.0
        if value <= 0:
            raise DataError(
                f"{where(row, path)}: {column} is {row[column].strip()}; a law needs positive "
                "numbers, leave this run out"
            )
        values.append(value)
    return np.array(values)
