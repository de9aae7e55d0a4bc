"""Rows of a list as columns, before anyone looks at single rows: the plan's form of them.
Readers of lists end here, with Arrow's kernels, so that millions of rows take seconds."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from caft.errors import DataError
from pipelines.data.sources.cells import cell_strings
from pipelines.data.sources.columns import Columns, caption_source

TEXTS = pa.list_(pa.string())
CAPTIONS = pa.list_(pa.struct([("source", pa.string()), ("kind", pa.string()), ("text", TEXTS)]))
RAW_SCHEMA = pa.schema(
    [
        ("url", pa.string()),
        # A cell as it came: a list, or one text that may yet spell a list.
        ("captions", CAPTIONS),
        ("columns", pa.map_(pa.string(), pa.string())),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
HTTP = r"^(?i:https?)://[^/?#\s]+"
OTHER_PROTOCOL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:")
SHOWN_CHARS = 200
Item = TypeVar("Item")


def to_raw(table: pa.Table, columns: Columns, root: str, path: str) -> pa.Table:
    """Rows of a list with its own columns as rows of RAW_SCHEMA.

    Raises:
        DataError: a caption column that holds neither texts nor lists of texts.
    """
    urls, reasons, details = _locate_all(_text(table[columns.url]), root)
    arrays = [
        urls,
        _captions(table, columns, path),
        _extra(table, columns.extra),
        reasons,
        details,
    ]
    return pa.Table.from_arrays(arrays, schema=RAW_SCHEMA)


def bad_rows(details: Sequence[str]) -> pa.Table:
    """Rows of RAW_SCHEMA for lines that are none of the list's, one for each detail."""
    rows = len(details)
    none = pa.array([[]] * rows, CAPTIONS)
    columns = pa.array([[]] * rows, RAW_SCHEMA.field("columns").type)
    arrays = [pa.repeat("", rows), none, columns, pa.repeat("bad_row", rows), pa.array(details)]
    return pa.Table.from_arrays(arrays, schema=RAW_SCHEMA)


def caption_cells(values: Sequence[Any], name: str, complaints: list[str | None]) -> pa.Array:
    """Cells of any shape of a caption column, as list<string>; what they hold instead of texts is
    added to `complaints`, one for each row."""
    cells = []
    for n, value in enumerate(values):
        said: list[str] = []
        cells.append(cell_strings(value, said))
        if said and not cells[-1]:
            complaints[n] = "; ".join(filter(None, [complaints[n], f"{name}: {said[0]}"]))
    return pa.array(cells, TEXTS)


def with_complaints(table: pa.Table, complaints: Sequence[str | None]) -> pa.Table:
    """Rows of RAW_SCHEMA; those without any text are rejected for what they hold instead."""
    if not any(complaints):
        return table
    rows = table.to_pylist()
    for row, complaint in zip(rows, complaints, strict=True):
        if complaint and row["reason"] is None and not any(c["text"] for c in row["captions"]):
            row |= {"reason": "no_caption", "detail": complaint}
    return pa.Table.from_pylist(rows, RAW_SCHEMA)


def text_keys(texts: Iterable[str | None]) -> np.ndarray:
    """The first 16 bytes (n,) of each text's SHA-256: of URLs the rows' keys, in binary."""
    digests = (hashlib.sha256((text or "").encode()).digest()[:16] for text in texts)
    return np.frombuffer(b"".join(digests), dtype="V16")


def caption_characters(table: pa.Table) -> pa.Array:
    """Characters of all captions of each row, int32."""
    captions = table["captions"].combine_chunks()
    texts = captions.flatten().field("text")
    ends = np.cumsum(pc.utf8_length(texts.flatten()).to_numpy(zero_copy_only=False))
    for lists in (texts, captions):  # totals up to the end of each cell, then of each row
        lengths = pc.fill_null(lists.value_lengths(), 0).to_numpy()
        ends = np.concatenate([[0], ends])[np.cumsum(lengths)]
    return pa.array(np.diff(ends, prepend=0), pa.int32())


def damaged_rows(table: pa.Table) -> pa.ChunkedArray:
    """Which rows (n,) have a text with U+FFFD; a chunk rejects them, and nothing is merged with
    them."""
    damaged = pc.match_substring(table["url"], "\ufffd")
    captions = table["captions"].combine_chunks()
    texts = captions.flatten().field("text")
    found = pc.indices_nonzero(pc.match_substring(texts.flatten(), "\ufffd"))
    if not len(found):
        return damaged
    entries = pc.list_parent_indices(texts).take(found)
    rows = pc.list_parent_indices(captions).take(entries)
    return pc.or_(
        damaged, pa.chunked_array([pc.is_in(pa.array(range(len(table))), rows.cast(pa.int64()))])
    )


def locate(value: str, root: str) -> tuple[str, str | None, str]:
    """Where the image of a list's value is: (URL or path, reason, detail).

    A relative path goes below `root`. A list may come from anyone, so that what leads out of
    `root` is refused: `..`, an absolute path, another protocol, fsspec's chains.
    """
    if not value:
        return "", "bad_url", "no URL"
    if re.match(HTTP, value):
        return value, None, ""
    inside = value.removeprefix(root.rstrip("/") + "/")
    if OTHER_PROTOCOL.match(inside) or inside.startswith("//"):
        return value, "bad_url", "not an http(s) URL with a host"
    if inside.startswith(("/", "~", "\\")):
        return value, "bad_url", "an absolute path outside of image_root"
    if ".." in re.split(r"[/\\]", inside):
        return value, "bad_url", "a path that leads out of image_root"
    if "::" in inside or "\0" in inside:
        return value, "bad_url", "not the name of a file"
    if re.match(HTTP, root):
        inside = quote(inside)
    return f"{root.rstrip('/')}/{inside}", None, ""


def _locate_all(urls: pa.Array, root: str) -> tuple[pa.Array, pa.Array, pa.Array]:
    urls = pc.utf8_trim_whitespace(pc.fill_null(urls, ""))
    fine = pc.match_substring_regex(urls, HTTP)
    if pc.all(fine, min_count=0).as_py():
        return urls, pa.nulls(len(urls), pa.string()), pa.repeat("", len(urls))
    located = [
        (url, None, "") if is_fine else locate(url, root)
        for url, is_fine in zip(urls.to_pylist(), fine.to_pylist(), strict=True)
    ]
    columns = zip(*located, strict=True)
    urls, reasons, details = (pa.array(column, pa.string()) for column in columns)
    return urls, reasons, details


def _captions(table: pa.Table, columns: Columns, path: str) -> pa.Array:
    rows, names = table.num_rows, list(columns.captions)
    if not names:  # they are joined from elsewhere
        return pa.array([[]] * rows, CAPTIONS)
    cells = _interleave([_cells(table[name], name, path) for name in names])
    sources = [caption_source(name) for name in names]
    structs = pa.StructArray.from_arrays(
        [_tile(sources, rows), _tile(list(columns.captions.values()), rows), cells],
        fields=list(CAPTIONS.value_type),
    )
    return pa.ListArray.from_arrays(_offsets(rows, len(names)), structs)


def _extra(table: pa.Table, names: Sequence[str]) -> pa.Array:
    rows = table.num_rows
    if not names:
        empty = pa.array([], pa.string())
        return pa.MapArray.from_arrays(_offsets(rows, 0), empty, empty)
    values = _interleave([_text(table[name]) for name in names])
    return pa.MapArray.from_arrays(_offsets(rows, len(names)), _tile(list(names), rows), values)


def _cells(column: pa.ChunkedArray, name: str, path: str) -> pa.Array:
    """A caption column as list<string>; a text is a list of one."""
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        try:
            return _whole(column).cast(TEXTS)
        except pa.ArrowException:
            raise DataError(f"{path}: column '{name}' holds {kind}, texts are due") from None
    if pa.types.is_nested(kind):
        raise DataError(f"{path}: column '{name}' holds {kind}, texts are due")
    texts = _text(column)
    return pa.ListArray.from_arrays(_offsets(len(texts), 1), pc.fill_null(texts, ""))


def _text(column: pa.ChunkedArray) -> pa.Array:
    """A column as strings; bytes that are no UTF-8 become replacement characters."""
    array = _whole(column)
    try:
        return array.cast(pa.string())
    except pa.ArrowInvalid:
        repaired = [None if v is None else v.decode("utf-8", "replace") for v in array.to_pylist()]
        return pa.array(repaired, pa.string())
    except pa.ArrowNotImplementedError:
        return pa.array([None if v is None else str(v) for v in array.to_pylist()], pa.string())


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _interleave(columns: list[pa.Array]) -> pa.Array:
    """First values of all columns, then all second ones, and so on."""
    if len(columns) == 1:
        return columns[0]
    rows = len(columns[0])
    order = np.arange(rows * len(columns)).reshape(len(columns), rows).T.ravel()
    return pa.concat_arrays(columns).take(pa.array(order))


def _tile(values: list[str], times: int) -> pa.Array:
    order = np.tile(np.arange(len(values), dtype=np.int32), times)
    return pa.array(values, pa.string()).take(pa.array(order))


def _offsets(rows: int, width: int) -> pa.Array:
    return pa.array(np.arange(rows + 1, dtype=np.int32) * width)


def shorten(text: str) -> str:
    """A piece of a list as a detail shows it."""
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."


def in_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
