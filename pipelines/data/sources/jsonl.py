"""Reads JSON Lines lists in blocks of whole lines, with Arrow's parser wherever it can.
One of the readers of lists; a line that is no JSON object becomes a row of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json as pajson

from caft.errors import DataError
from pipelines.data.config import SourceConfig
from pipelines.data.sources import paths
from pipelines.data.sources.cells import cell_strings
from pipelines.data.sources.columns import Columns, LeftOut, choose_columns
from pipelines.data.sources.encodings import find_encoding, head_as_utf8, to_utf8
from pipelines.data.sources.raw import (
    TEXTS,
    bad_rows,
    caption_cells,
    shorten,
    to_raw,
    with_complaints,
)

BLOCK_BYTES = 4 * 2**20
MAX_LINE_BYTES = 16 * 2**20
MAX_DEPTH = 256  # Arrow's parser has no limit of its own, and the stack has
Types = dict[str, pa.DataType]
_DECODER = json.JSONDecoder(strict=False)
_SPACE = re.compile(r"[ \t\r]*")


@dataclass(frozen=True)
class Lines:
    """How a list of JSON Lines is written, and the types of the fields in its first lines."""

    encoding: str
    types: Types


def read_jsonl(
    path: str, source: SourceConfig, extra: Sequence[str], left_out: LeftOut
) -> Iterator[pa.Table]:
    """Stream a list as tables of RAW_SCHEMA.

    Raises:
        DataError: a column that is not there, or no JSON object in the first lines.
    """
    lines = look_at_lines(path, source)
    with paths.open_stream(path) as stream:
        yield from parse_jsonl(stream, path, source, lines, extra, left_out)


def look_at_lines(path: str, source: SourceConfig) -> Lines:
    """The encoding of a list and the types of the fields in its first lines."""
    raw = paths.head(path)
    encoding = find_encoding(raw, source, path)
    types: Types = {}
    # The last line may be cut off, and then counts for nothing.
    for _, fields, _ in _objects(head_as_utf8(raw, encoding)):
        for name, value in (fields or {}).items():
            types[name] = _widest(types.get(name), value)
    if not types:
        raise DataError(f"{path}: no JSON object in its first lines; one per line is due")
    return Lines(encoding, types)


def parse_jsonl(
    stream: pa.NativeFile,
    path: str,
    source: SourceConfig,
    lines: Lines,
    extra: Sequence[str],
    left_out: LeftOut,
) -> Iterator[pa.Table]:
    """Tables of RAW_SCHEMA of an encoded stream that starts at a line."""
    types = dict(lines.types)
    columns = choose_columns(source, path, list(types), extra)
    root = source.image_root or paths.parent(path)
    number = 0
    for block, too_long in _blocks(to_utf8(stream, lines.encoding)):
        if too_long:
            number += 1
            start = block.decode("utf-8", "replace")
            yield bad_rows([f"line {number}: longer than {MAX_LINE_BYTES // 2**20} MiB: {start}"])
            continue
        parsed = _parse_quickly(block, columns, types)
        late = _late(parsed, block, types)
        if late:  # fields that no earlier line has
            types |= late
            wider = choose_columns(source, path, list(types), extra)
            if wider != columns:
                columns = wider
                parsed = _parse_quickly(block, columns, types)
        if parsed is None:
            parts, bad = _parse_slowly(block, columns, number, root, path)
        else:
            parts, bad = [to_raw(parsed.select(columns.names), columns, root, path)], []
        _count(left_out, parsed, block, list(types), columns)
        number += block.count(b"\n")
        yield from (part for part in parts if part.num_rows)
        if bad:
            yield bad_rows(bad)


def _blocks(stream: pa.NativeFile) -> Iterator[tuple[bytes, bool]]:
    """Whole lines of the stream; of a line that is too long its start, and True."""
    rest = b""
    while data := stream.read(BLOCK_BYTES):
        end = data.rfind(b"\n") + 1
        if end == 0:
            rest += data
            if len(rest) > MAX_LINE_BYTES:
                yield rest[:100], True
                rest = _next_line(stream)
            continue
        block, rest = rest + data[:end], data[end:]
        if block.strip():
            yield block, False
    if rest.strip():
        yield rest, False


def _next_line(stream: pa.NativeFile) -> bytes:
    while data := stream.read(BLOCK_BYTES):
        if (end := data.find(b"\n") + 1) > 0:
            return data[end:]
    return b""


def _parse_quickly(block: bytes, columns: Columns, types: Types) -> pa.Table | None:
    """All fields of all lines, the used ones as texts; None: a line is broken, or a field changes
    its type, or an object is none of Arrow's."""
    if _depth(block) > MAX_DEPTH:
        return None
    schema = pa.schema(
        [
            (name, types[name] if name in columns.captions or types[name] != TEXTS else pa.string())
            for name in columns.names
        ]
    )
    try:
        return pajson.read_json(
            pa.BufferReader(block),
            read_options=pajson.ReadOptions(use_threads=False, block_size=len(block) + 1),
            parse_options=pajson.ParseOptions(
                explicit_schema=schema, unexpected_field_behavior="infer"
            ),
        )
    except (pa.ArrowException, UnicodeDecodeError):
        return None


def _depth(block: bytes) -> int:
    """How deep brackets are nested at most, or more where texts hold brackets."""
    folded = np.frombuffer(block, np.uint8) | 32
    steps = (folded == ord("{")).astype(np.int8) - (folded == ord("}")).astype(np.int8)
    return int(np.cumsum(steps, dtype=np.int32).max(initial=0))


def _late(parsed: pa.Table | None, block: bytes, types: Types) -> Types:
    """Fields of a block that `types` lacks."""
    if parsed is not None and all(name in types for name in parsed.column_names):
        return {}
    late: Types = {}
    for _, fields, _ in _objects(block):
        for name, value in (fields or {}).items():
            if name not in types:
                late[name] = _widest(late.get(name), value)
    return late


def _parse_slowly(
    block: bytes, columns: Columns, before: int, root: str, path: str
) -> tuple[list[pa.Table], list[str]]:
    """Line by line: for blocks with a broken line, or with fields of changing types."""
    rows: list[dict[str, Any]] = []
    bad: list[str] = []
    for number, fields, line in _objects(block):
        if fields is None:
            shown = shorten(line.decode("utf-8", "replace"))
            bad.append(f"line {before + number}: no JSON object: {shown}")
        else:
            rows.append(fields)
    arrays = {
        name: pa.array([_text(row.get(name)) for row in rows], pa.string())
        for name in [columns.url, *columns.extra]
    }
    if any(isinstance(row.get(columns.url), dict) for row in rows):  # which is no place
        places = (row.get(columns.url) for row in rows)
        texts = [None if isinstance(place, dict) else _text(place) for place in places]
        arrays[columns.url] = pa.array(texts, pa.string())
    complaints: list[str | None] = [None] * len(rows)
    for name in columns.captions:
        arrays[name] = caption_cells([row.get(name) for row in rows], name, complaints)
    table = pa.table({name: arrays[name] for name in columns.names})
    return [with_complaints(to_raw(table, columns, root, path), complaints)], bad


def _count(
    left_out: LeftOut, parsed: pa.Table | None, block: bytes, names: list[str], columns: Columns
) -> None:
    for name in left_out.add(names, columns):
        if parsed is None:
            held = sum(bool((fields or {}).get(name)) for _, fields, _ in _objects(block))
        elif name in parsed.column_names:
            held = len(parsed) - parsed[name].null_count
        else:
            held = 0
        left_out.count(name, held)


def _objects(block: bytes) -> Iterable[tuple[int, dict[str, Any] | None, bytes]]:
    """(line number, fields, line) of each line that is not empty; None: no JSON object."""
    for number, line in enumerate(block.split(b"\n"), 1):
        if not line.strip(b" \t\r\0"):
            continue
        for fields in _objects_of(line):
            yield number, fields, line


def _objects_of(line: bytes) -> list[dict[str, Any] | None]:
    """The objects of a line, which is one or, as Arrow reads them too, several without a break."""
    text = line.decode("utf-8", "replace").strip("\ufeff\0\x1e \t\r")
    found: list[dict[str, Any] | None] = []
    at = 0
    try:
        while at < len(text):
            value, end = _DECODER.raw_decode(text, at)
            if not isinstance(value, dict):
                return [None]
            found.append(value)
            at = _SPACE.match(text, end).end()  # type: ignore[union-attr]
    except (ValueError, RecursionError):
        return [None]
    return found or [None]


def _widest(known: pa.DataType | None, value: Any) -> pa.DataType:
    if isinstance(value, list):
        return TEXTS
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        return known or pa.int64()
    if isinstance(value, float):
        return pa.float64()
    return pa.string() if known is None else known


def _text(value: Any) -> str | None:
    """A value that is no caption as text; a list's first text."""
    if isinstance(value, (str, list)):
        return next(iter(cell_strings(value)), None)
    return None if value is None else json.dumps(value)
