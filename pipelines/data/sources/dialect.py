"""Tells from its first bytes how a delimited list is written: delimiter, quoting, header, names.
Asked before a list is read; `delimiter`, `quoting` and `encoding` of a source override it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from caft.errors import DataError
from pipelines.data.config import SourceConfig
from pipelines.data.sources import paths
from pipelines.data.sources.columns import is_known_caption, is_known_url
from pipelines.data.sources.encodings import find_encoding, head_as_utf8
from pipelines.data.sources.records import MAX_RECORD_BYTES, Cut, Dialect, Quoting, cut_records

Kind = Literal["cc3m", "cc12m"]
HEADERLESS: dict[Kind, tuple[str, str]] = {"cc3m": ("caption", "url"), "cc12m": ("url", "caption")}
DELIMITERS = (",", "\t", ";", "|")
QUOTINGS: tuple[Quoting, ...] = ("doubled", "escaped", "none")
JUDGED_ROWS = 1000
JUDGED_BYTES = 2**18
URL = re.compile(r"(?i:https?)://[^/?#\s]+\S*")
QUOTED_URL = re.compile(rb'(?im:^|\t)"+(?i:https?)://[^\t\n]*"')
IMAGE_NAME = re.compile(r"[^\s:*?\"<>|]+\.(?i:jpe?g|png|webp|gif|bmp|tiff?|avif|jfif)")


@dataclass(frozen=True)
class Form:
    """How a delimited list is written.

    Attributes:
        body: where the first row starts, in bytes of the list as UTF-8.
        header: whether the names come from a line of the list.
    """

    encoding: str
    carriage_returns: bool
    dialect: Dialect
    names: tuple[str, ...]
    body: int
    header: bool


def find_form(path: str, source: SourceConfig, kind: str = "table") -> Form:
    """Look at the first bytes of a list.

    Raises:
        DataError: the file is empty, not in the encoding it was taken for, or has columns that
            cannot be told.
    """
    raw = paths.head(path)
    encoding = find_encoding(raw, source, path)
    head = head_as_utf8(raw, encoding)
    is_whole = len(raw) < paths.HEAD_BYTES
    carriage_returns = b"\r" in head and b"\n" not in head
    if carriage_returns:
        head = head.replace(b"\r", b"\n")
    start, declared = _preamble(head)
    text = head[start:]
    candidates = [
        _judge(text, dialect, is_whole, source)
        for dialect in _candidates(text, path, source, kind, declared)
    ]
    if not candidates:
        raise DataError(f"{path}: no line in it; give a list with a header and rows")
    best = max(candidates, key=lambda judged: judged.rank)
    names, header = _names(path, best, kind, source)
    body = start + (best.first_bytes if header else 0)
    return Form(encoding, carriage_returns, best.dialect, names, body, header)


def headerless_kind(path: str, source: SourceConfig) -> Kind | None:
    """cc3m or cc12m for a list of two columns with tabs, without a header and without quoting."""
    form = find_form(path, source)
    if form.header or form.dialect.delimiter != "\t":
        return None
    raw = paths.head(path, JUDGED_BYTES)
    head = head_as_utf8(raw, form.encoding)
    if form.dialect.quoting != "none" and _needs_quotes(head, form.dialect):
        return None
    return next((kind for kind, names in HEADERLESS.items() if names == form.names), None)


def read_cells(data: bytes, dialect: Dialect, at_end: bool) -> Iterator[list[str]]:
    """The cells of the whole records in a few bytes of a list; empty lines are none."""
    yield from _cells(cut_records(data, dialect, at_end), dialect)


@dataclass(frozen=True)
class _Judged:
    dialect: Dialect
    first: list[str]
    second: list[str]
    first_bytes: int
    rank: tuple[float, ...]


def _judge(text: bytes, dialect: Dialect, is_whole: bool, source: SourceConfig) -> _Judged:
    judged = text[:JUDGED_BYTES]
    cut = cut_records(judged, dialect, is_whole and len(judged) == len(text))
    if not cut.records:  # a first row that is larger than that
        cut = cut_records(text, dialect, is_whole)
    rows = list(islice(_cells(cut, dialect), JUDGED_ROWS))
    first = [_name(cell) for cell in rows[0]] if rows else []
    width = len(first)
    total = len(rows) + len(cut.broken)
    alike = sum(len(row) == width for row in rows) / total if total else 0.0
    wanted = {source.url_column, *(source.caption_columns or ())}
    known = any(is_known_url(name) or name in wanted or _is_image(name) for name in first)
    rank = (
        float(width > 1),
        float(known),
        round(alike, 2),
        round(_located(rows[1:]), 2),
        round(alike, 4),
        -QUOTINGS.index(dialect.quoting),
    )
    second = rows[1] if len(rows) > 1 else []
    return _Judged(dialect, first, second, _first_bytes(text, dialect), rank)


def _candidates(
    text: bytes, path: str, source: SourceConfig, kind: str, declared: str | None
) -> list[Dialect]:
    """The dialects that a list may be written in, the likeliest first."""
    line = text[:JUDGED_BYTES].lstrip(b" \r\n").split(b"\n")[0]
    if not line.strip():
        return []
    if source.delimiter is not None:
        delimiters = [source.delimiter]
    elif kind in HEADERLESS:
        delimiters = ["\t"]
    elif declared is not None:
        delimiters = [declared]
    else:
        # The first line may end inside of a quoted cell.
        delimiters = _delimiters(text[:JUDGED_BYTES] if b'"' in line else line)
        if paths.suffix(path) == ".tsv" and "\t" in delimiters:
            delimiters.sort(key=lambda mark: mark != "\t")
        delimiters = delimiters or [","]
    if source.quoting is not None:
        quotings: Sequence[Quoting] = [source.quoting]
    elif kind in HEADERLESS:
        quotings = ["none"]  # as published: a quotation mark is part of a caption
    elif b'"' not in text:
        quotings = ["doubled"]
    else:
        quotings = [one for one in QUOTINGS if one != "escaped" or b'\\"' in text]
    return [Dialect(mark, quoting) for mark in delimiters for quoting in quotings]


def _delimiters(text: bytes) -> list[str]:
    return [mark for mark in DELIMITERS if mark.encode() in text]


def _preamble(head: bytes) -> tuple[int, str | None]:
    """Where a list starts behind empty lines, comments and Excel's `sep=;`, and what that says."""
    start, declared = 0, None
    while True:
        end = head.find(b"\n", start) + 1
        line = head[start:end].strip()
        if end == 0:
            return start, declared
        if re.fullmatch(rb'"?sep=.?"?', line, re.IGNORECASE):
            declared = line.strip(b'"')[4:].decode("utf-8", "replace") or "\t"
        elif line and not (line.startswith(b"#") and _is_comment(line)):
            return start, declared
        start = end


def _needs_quotes(head: bytes, dialect: Dialect) -> bool:
    """Whether some cell is quoted that would be none without: its quotes are no text."""
    cells = (cell for row in read_cells(head, dialect, at_end=False) for cell in row)
    if any(sign in cell for cell in cells for sign in (dialect.delimiter, "\n")):
        return True
    return (
        re.search(rb'(?:^|\t)"+https?://[^\t\n]*"', head, re.IGNORECASE | re.MULTILINE) is not None
    )


def _is_comment(line: bytes) -> bool:
    """Whether a line with # in front is neither a header nor a row that starts with a hashtag."""
    cells = re.split(r"[,;|\t]", line.decode("utf-8", "replace"))
    return len(cells) < 2 or not any(is_known_url(_name(cell)) or _is_image(cell) for cell in cells)


def _names(
    path: str, best: _Judged, kind: str, source: SourceConfig
) -> tuple[tuple[str, ...], bool]:
    cells = best.first
    located = [n for n, cell in enumerate(cells) if _is_image(cell)]
    named = any(is_known_url(cell) or is_known_caption(cell) for cell in cells)
    if kind in HEADERLESS:
        has_header = not located and named and len(cells) == 2
        return (tuple(cells), True) if has_header else (HEADERLESS[kind], False)
    if not located:
        return tuple(cells), True
    if len(cells) == 2:
        return ("url", "caption") if located[0] == 0 else ("caption", "url"), False
    names = tuple(f"column_{n}" for n in range(1, len(cells) + 1))
    if source.url_column not in names:
        raise DataError(
            f"{path}: no header: the first line has a URL; add a line with the columns' names, or "
            f"set url_column: {names[located[0]]} and caption_columns, such as {{{names[-1]}: raw}}"
        )
    return names, False


def _located(rows: list[list[str]]) -> float:
    """The share of rows that hold the place of an image in a cell of its own."""
    return sum(any(map(_is_image, row)) for row in rows) / len(rows) if rows else 0.0


def _is_image(cell: str) -> bool:
    cell = cell.strip()
    return URL.fullmatch(cell) is not None or IMAGE_NAME.fullmatch(cell) is not None


def _name(cell: str) -> str:
    return cell.replace("\ufeff", "").replace("\0", "").strip().lstrip("#").strip(" \t\"'")


def _first_bytes(text: bytes, dialect: Dialect) -> int:
    """Bytes of the first record, found as the shortest run of lines that holds a whole one."""
    position = 0
    while (position := text.find(b"\n", position) + 1) > 0:
        cut = cut_records(text[:position], dialect, False)
        if cut.records.strip():
            return cut.used
    return len(text)


def _cells(cut: Cut, dialect: Dialect) -> Iterator[list[str]]:
    text = io.StringIO(cut.records.decode("utf-8", "replace"), newline="")
    csv.field_size_limit(MAX_RECORD_BYTES)
    mark, escape = dialect.delimiter, "\\" if dialect.quoting == "escaped" else None
    if dialect.quoting == "none":
        reader = csv.reader(text, delimiter=mark, quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(text, delimiter=mark, escapechar=escape)
    try:
        yield from (row for row in reader if row)
    except csv.Error:
        return
