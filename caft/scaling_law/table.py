"""Reads a table of finished runs: CSV, gzipped CSV or Parquet, and the rows that a condition keeps.
First step of `python -m caft.scaling_law`; errors name the file, the line and the column."""

from __future__ import annotations

import ast
import csv
import gzip
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from caft.errors import DataError

Row = Mapping[str, str]
LINE = "\0line"  # of a row in its file; no column is called that
MISSING = ("", "nan", "na", "n/a", "null", "none", "-")

COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda one, several: one in several,
    ast.NotIn: lambda one, several: one not in several,
}


def read_table(path: Path) -> list[Row]:
    """The rows of a CSV file with a header (also gzipped), or of a Parquet file, as text.

    Raises:
        DataError: no such file, not UTF-8, no row, or a line with other columns than the header.
    """
    try:
        if path.suffix == ".parquet":
            rows = [
                {name: "" if cell is None else str(cell) for name, cell in row.items()}
                for row in pyarrow.parquet.read_table(path).to_pylist()
            ]
        else:
            opened = gzip.open if path.suffix == ".gz" else open
            with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
                rows = [*csv.DictReader(file, strict=True)]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: not a table of runs that can be read ({error})") from error
    if not rows:
        raise DataError(f"{path}: no runs in it; give a CSV file with a header and a line for each")
    for line, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise DataError(f"{path} line {line}: not as many cells as the header has columns")
        row[LINE] = str(line)
    return list(rows)


def keep_rows(rows: Sequence[Row], condition: str, path: Path) -> list[Row]:
    """The rows for which a condition on columns holds, as `family == "clip" and samples >= 3e9`.

    It knows ==, !=, <, <=, >, >=, in, not in, and, or, not; a column with another name than a
    word's is written `column("1-scenes/r1")`. Text is compared with text, numbers with numbers.

    Raises:
        DataError: another expression, a column that is not there, or no row that it holds for.
    """
    try:
        tree = ast.parse(condition, mode="eval").body
    except SyntaxError as error:
        raise DataError(f"--where {condition!r}: not a condition ({error.msg})") from None
    try:
        kept = [row for row in rows if _holds(tree, row)]
    except (TypeError, ValueError) as error:
        raise DataError(f"--where {condition!r}: {error}") from None
    except KeyError as error:
        known = ", ".join(name for name in rows[0] if name != LINE)
        raise DataError(
            f"--where {condition!r}: {path} has no column {error.args[0]}; it has {known}"
        ) from None
    if not kept:
        raise DataError(f"--where {condition!r}: holds for none of the {len(rows)} runs of {path}")
    return kept


def cell_number(row: Row, path: Path, column: str) -> float | None:
    """A cell as a number; None where it is empty, or written as what stands for no number.

    Raises:
        DataError: text, or infinity.
    """
    text = row[column].strip()
    try:
        value = math.nan if text.lower() in MISSING else float(text)
    except ValueError:
        raise DataError(f"{where(row, path)}: {column} is {text!r}, not a number") from None
    if math.isinf(value):
        raise DataError(f"{where(row, path)}: {column} is {text}; a law needs finite numbers")
    return None if math.isnan(value) else value


def where(row: Row, path: Path) -> str:
    """The file and line of a row."""
    return f"{path} line {row[LINE]}"


def line_list(rows: Sequence[Row]) -> str:
    """The lines of rows, the first ten."""
    lines = [row[LINE] for row in rows]
    more = f" and {len(lines) - 10} more" if len(lines) > 10 else ""
    return f"line{'s' * (len(lines) > 1)} {', '.join(lines[:10])}{more}"


def _holds(tree: ast.expr, row: Row) -> bool:
    match tree:
        case ast.BoolOp(ast.And(), parts):
            return all(_holds(part, row) for part in parts)
        case ast.BoolOp(ast.Or(), parts):
            return any(_holds(part, row) for part in parts)
        case ast.UnaryOp(ast.Not(), part):
            return not _holds(part, row)
        case ast.Compare(left, kinds, others):
            sides = [_side(side, row) for side in (left, *others)]
            return all(
                _compare(kind, one, other)
                for kind, one, other in zip(kinds, sides, sides[1:], strict=False)
            )
    raise ValueError("only comparisons of columns, joined by and, or, not")


def _compare(kind: ast.cmpop, one: object, other: object) -> bool:
    compare = COMPARISONS.get(type(kind))
    if compare is None:
        raise ValueError("only ==, !=, <, <=, >, >=, in and not in")
    if isinstance(other, list):
        return compare(one, other) or compare(_as(one, float), other)
    if isinstance(one, float) or isinstance(other, float):  # a column beside a number
        one, other = _as(one, float), _as(other, float)
        if one is None or other is None:
            return isinstance(kind, ast.NotEq)
    return compare(one, other)


def _as(value: object, kind: type[float]) -> float | None:
    try:
        return kind(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


def _side(tree: ast.expr, row: Row) -> object:
    match tree:
        case ast.Name(name) | ast.Call(ast.Name("column"), [ast.Constant(str(name))]):
            return row[name]
        case ast.Constant(bool(value)):
            return str(value)
        case ast.Constant(int(value) | float(value)):
            return float(value)
        case ast.Constant(str(value)):
            return value
        case ast.UnaryOp(ast.USub(), ast.Constant(int(value) | float(value))):
            return -float(value)
        case ast.List(elements) | ast.Tuple(elements):
            return [_side(element, row) for element in elements]
    raise ValueError("a side of a comparison is a column, a number, a text or a list of them")
