"""Looks at a source's first rows, so that one that is not what it was taken for fails at once.
Before the plan; the same rows are read and judged here as the stage reads and judges them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

from caft.errors import DataError
from pipelines import user_paths
from pipelines.data.config import SourceConfig
from pipelines.data.join.values import JOINABLE, caption_list, image_fields, image_value, no_row
from pipelines.data.sources import list_containers, parse_rows, paths, read_container, read_tables
from pipelines.data.sources.beside import JSON_ENDING, TEXT_ENDINGS
from pipelines.data.sources.detect import CONTAINERS, detect_kind, source_files
from pipelines.data.sources.encodings import guess_encoding, too_many
from pipelines.data.sources.places import read_bytes
from pipelines.data.sources.tar_members import read_members
from pipelines.data.sources.tars import endings_in_order, to_its_end

CHECKED_ROWS = 1000
CHECKED_SAMPLES = 200  # of containers, whose images are read with them
WITH_URL_COLUMN = ("table", "cc3m", "cc12m", "embedded")
GUESSED_BYTES = 20_000
MISMATCHED = ("no_caption", "missing_file")  # what a tar of another order looks like


def check_source(source: SourceConfig) -> None:
    """Read a source's first rows.

    Raises:
        DataError: a file that is missing, empty, corrupt, of an unknown kind or not readable; a
            column that is not there; an encoding to be set; first rows of which none can be used,
            or more than `max_bad_share` are broken.
        StorageError: nobody answers where it lies.
    """
    user_paths.require_answer(source.path)
    kind = detect_kind(source)
    if kind not in WITH_URL_COLUMN and source.url_column is not None:
        raise DataError(f"{source.path}: url_column is set, but a {kind} has no columns of URLs")
    if kind in ("sharegpt4v", "dataset") and source.caption_columns is not None:
        raise DataError(f"{source.path}: caption_columns is set, but a {kind} has its own captions")
    if source.captions_from is not None and kind == "sharegpt4v":
        raise DataError(f"{source.path}: captions_from is set, but a {kind} has its own captions")
    if source.captions_from is not None:
        captions = caption_list(source)
        # A key or a file's name need not lead anywhere.
        _check_rows(captions, () if source.captions_from.on == "url" else ("bad_url",))
    # Images alone are wanted where captions neither lie beside them nor are joined.
    images_alone = source.captions_from is None and not source.needs_captions
    _check_rows(source, JOINABLE if images_alone else ())


def _check_rows(source: SourceConfig, usable: Sequence[str] = ()) -> None:
    """Raises DataError if too many of a source's first rows have a reason but those in `usable`."""
    kind = detect_kind(source)
    rows = [row if row[0] not in usable else (None, "") for row in _first_rows(source, kind)]
    if not rows:
        where = list_containers(source)[0] if kind in CONTAINERS else source.path
        raise DataError(f"{where}: no row in it; give a source with at least one image")
    reasons = Counter(reason for reason, _ in rows if reason is not None)
    if reasons.total() == len(rows):
        raise DataError(
            f"{source.path}: none of its first {len(rows):,} rows can be used: "
            f"{_shown(reasons, rows)}{_advice(source, kind, reasons)}"
        )
    bad = reasons["bad_row"] + reasons["bad_text"]
    if too_many(bad, len(rows), len(rows), source):
        raise DataError(
            f"{source.path}: {bad:,} of its first {len(rows):,} rows are broken: "
            f"{_shown(reasons, rows)}{_advice(source, kind, reasons)}; max_bad_share allows more"
        )


def _first_rows(source: SourceConfig, kind: str) -> Iterator[tuple[str | None, str]]:
    """Reason and detail of each, before captions are joined."""
    for row in islice(_read_first(source, kind), CHECKED_ROWS):
        reason, detail = row["reason"], row["detail"]
        if source.captions_from is not None and reason in (None, *JOINABLE):
            value = image_value(row["url"], row["columns"], source)
            missing = None if value is not None else no_row(None, source)
            reason = missing and missing["reason"]
            detail = f"{missing['detail']}: {detail}" if missing else ""
        yield reason, detail


def _read_first(source: SourceConfig, kind: str) -> Iterator[dict[str, Any]]:
    extra = image_fields(source)
    if kind in CONTAINERS:
        count = 1 if kind == "dataset" else CHECKED_SAMPLES
        read = (
            to_its_end(path, source, read_container(path, source, extra))
            for path in list_containers(source)
        )
        yield from islice(chain.from_iterable(read), count)
        return
    for table in read_tables(source, extra):
        for start in range(0, len(table), CHECKED_ROWS):
            yield from parse_rows(table.slice(start, CHECKED_ROWS), source)


def _shown(reasons: Counter[str], rows: list[tuple[str | None, str]]) -> str:
    """`bad_row 5 (row 2: 3 columns, 2 are due: ...), no_caption 1 (...)`."""
    first = dict(reversed(rows))
    return ", ".join(
        f"{reason} {count:,} ({first[reason]})" for reason, count in reasons.most_common(3)
    )


def _advice(source: SourceConfig, kind: str, reasons: Counter[str]) -> str:
    worst = reasons.most_common(1)[0][0]
    if kind == "webdataset" and worst in MISMATCHED:
        order = endings_in_order(list_containers(source)[0])
        if 1 < len(order) <= 4:
            then = ", then ".join(f".{ending}" for ending in order)
            return f"; members {then}: the tar is not sorted by name; sort it"
    if worst == "bad_text" and source.encoding is None:
        guess = guess_encoding(_odd_bytes(source, kind))
        return f"; set encoding: {guess}" if guess else "; set its encoding"
    if worst == "bad_row" and kind not in CONTAINERS:
        return "; fix the list, set its delimiter or quoting, or name its kind"
    if worst == "bad_url":
        return "; name the right column in url_column, or set image_root"
    if worst == "no_caption_row":
        return "; name what it has in captions_from.image_field"
    if worst == "no_caption":
        return "; name the right ones in caption_columns"
    return ""


def _odd_bytes(source: SourceConfig, kind: str) -> bytes:
    """Some of a source's text that is not UTF-8."""
    if kind == "webdataset":
        return _odd_members(list_containers(source)[0])
    if kind == "folder":
        endings = tuple(f".{ending}" for ending in (*TEXT_ENDINGS, JSON_ENDING))
        files = (file for found in paths.walk(source.path) for file in found)
        texts = (file.path for file in files if file.path.lower().endswith(endings))
        return b"\n".join(read_bytes(path) for path in islice(texts, CHECKED_SAMPLES))
    lines = paths.head(source_files(source)[0].path).split(b"\n")
    return b"\n".join(line for line in lines if not line.isascii())[:GUESSED_BYTES]


def _odd_members(path: str) -> bytes:
    endings = tuple(f".{ending}" for ending in (*TEXT_ENDINGS, JSON_ENDING))
    found = b""
    with paths.open_stream(path) as stream:
        limit = lambda name: 2**20 * name.endswith(endings) - 1  # noqa: E731
        for _, _, data in read_members(stream, path, limit):
            if data is not None and not data.isascii():
                found += data + b"\n"
            if len(found) > GUESSED_BYTES:
                break
    return found
