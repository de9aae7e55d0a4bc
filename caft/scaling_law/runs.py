"""Reads finished runs from a table: what each was given, its error, its family and group.
First step of `python -m caft.scaling_law`; errors name the file, the line and the column."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from caft.errors import DataError

Array = NDArray[np.float64]
Row = Mapping[str, str]

ONLY_FAMILY = "all runs"
LOSS = "loss"  # in the name of an error that depends on the batch size


@dataclass(frozen=True)
class Target:
    """What is to be explained: an error as it stands, or 1 - a score."""

    column: str
    is_score: bool = False

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


INPUTS = ("compute", "parameters", "samples", "unique_samples")


@dataclass(frozen=True)
class Runs:
    """n runs of one family."""

    family: str
    inputs: Mapping[str, Array]  # (n,) each, those of INPUTS that the table has
    error: Array  # (n,)
    groups: NDArray[np.str_] | None  # (n,)
    problems: tuple[str, ...] = ()


def read_table(path: Path) -> list[Row]:
    """The rows of a CSV file with a header.

    Raises:
        DataError: no such file, not UTF-8, no row, or a line with other columns than the header.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows: list[Row] = [*csv.DictReader(file, strict=True)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a table of runs that can be read ({error})") from error
    if not rows:
        raise DataError(f"{path}: no runs in it; give a CSV file with a header and a line for each")
    for line, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise DataError(f"{path} line {line}: not as many cells as the header has columns")
    return rows


def select_runs(rows: Sequence[Row], path: Path, target: Target, columns: Columns) -> list[Runs]:
    """The runs of a table by family, in the order in which families first appear.

    Args:
        rows: as `read_table` gives them.
        path: where they are from, for errors.

    Raises:
        DataError: a column that is not there, a cell that is empty or no number (or no positive
            one), a score outside 0 to 1, or a loss of several batch sizes.
    """
    named = {field: getattr(columns, field) for field in Columns.__dataclass_fields__}
    for name in (target.column, *filter(None, named.values())):
        if name not in rows[0]:
            raise DataError(f"{path}: no column {name}; it has {', '.join(rows[0])}")
    given = {field: named[field] for field in INPUTS if named[field]}
    if not given:
        raise DataError(f"{path}: what does the error depend on? name a column of {INPUTS}")
    problems = _check_batch_sizes(rows, path, target, columns.batch_size)
    families: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        families.setdefault(row[columns.family] if columns.family else ONLY_FAMILY, []).append(
            place
        )
    numbers = {
        field: np.array([_number(row, path, place, name) for place, row in enumerate(rows)])
        for field, name in given.items()
    }
    errors = np.array([_error(row, path, place, target) for place, row in enumerate(rows)])
    labels = np.array([row[columns.group] for row in rows]) if columns.group else None
    return [
        Runs(
            family,
            {field: column[places] for field, column in numbers.items()},
            errors[places],
            None if labels is None else labels[places],
            problems,
        )
        for family, places in families.items()
    ]


def _check_batch_sizes(
    rows: Sequence[Row], path: Path, target: Target, column: str | None
) -> tuple[str, ...]:
    if not target.is_loss:
        return ()
    if column is None:
        return (
            f"{target.name} depends on the batch size, which is not known to be one: "
            "name its column (--batch-size)",
        )
    sizes = sorted({_number(row, path, place, column) for place, row in enumerate(rows)})
    if len(sizes) > 1:
        raise DataError(
            f"{path}: {target.name} of runs with batch sizes {', '.join(f'{s:g}' for s in sizes)} "
            f"(column {column}); a contrastive loss grows with the batch, so fit one size at a "
            "time, or fit a score"
        )
    return ()


def _error(row: Row, path: Path, place: int, target: Target) -> float:
    if not target.is_score:
        return _number(row, path, place, target.column)
    score = _number(row, path, place, target.column)
    if score >= 1:
        raise DataError(
            f"{path} line {place + 2}: {target.column} is {score:g}; "
            "a score must be a fraction below 1, not in per cent"
        )
    return 1 - score


def _number(row: Row, path: Path, place: int, column: str) -> float:
    text = row[column].strip()
    where = f"{path} line {place + 2}: {column}"
    if not text:
        raise DataError(f"{where} is empty; leave out runs that have no measurement")
    try:
        value = float(text)
    except ValueError:
        raise DataError(f"{where} is {text!r}, not a number") from None
    if not (math.isfinite(value) and value > 0):
        raise DataError(f"{where} is {text}; a law needs positive numbers, leave this run out")
    return value
