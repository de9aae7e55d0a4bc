"""Reads JSON Lines lists in blocks of whole lines, with Arrow's parser wherever it can.
One of the readers of lists; a line that is no JSON object becomes a row of its own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.json as pajson

from caft.errors import DataError
from pipelines.data.config import SourceConfig
from pipelines.data.sources import paths
from pipelines.data.sources.columns import Columns, choose_columns
from pipelines.data.sources.raw import TEXTS, bad_rows, clean, clean_texts, shorten, to_raw

BLOCK_BYTES = 4 * 2**20
MAX_LINE_BYTES = 64 * 2**20


def read_jsonl(path: str, source: SourceConfig, extra: Sequence[str]) -> Iterator[pa.Table]:
    """Stream a list as tables of RAW_SCHEMA.

    Raises:
        DataError: a column that is not there, or no JSON object in the first lines.
    """
    seen = field_types(path)
    with paths.open_stream(path) as stream:
        yield from parse_jsonl(stream, path, source, seen, extra)


def field_types(path: str) -> dict[str, pa.DataType]:
    """Field -> type, of the objects in a list's first lines."""
    seen: dict[str, pa.DataType] = {}
    # The last line may be cut off, and then counts for nothing.
    for _, fields, _ in _objects(paths.head(path)):
        for name, value in fields.items():
            if value is not None:
                seen[name] = _widest(seen.get(name), value)
            else:
                seen.setdefault(name, pa.string())
    if not seen:
        raise DataError(f"{path}: no JSON object in its first lines; one per line is due")
    return seen


def parse_jsonl(
    stream: pa.NativeFile,
    path: str,
    source: SourceConfig,
    seen: dict[str, pa.DataType],
    extra: Sequence[str],
) -> Iterator[pa.Table]:
    """Tables of RAW_SCHEMA of a stream that starts at a line."""
    columns = choose_columns(source, path, list(seen), extra)
    schema = pa.schema([(name, seen[name]) for name in columns.names])
    root = source.image_root or paths.parent(path)
    lines = 0
    for block in _blocks(stream, path):
        bad: list[str] = []
        try:
            table = pajson.read_json(
                pa.BufferReader(block),
                read_options=pajson.ReadOptions(use_threads=False, block_size=len(block) + 1),
                parse_options=pajson.ParseOptions(
                    explicit_schema=schema, unexpected_field_behavior="ignore"
                ),
            )
        except pa.ArrowInvalid:
            table, bad = _parse_slowly(block, columns, lines)
        lines += block.count(b"\n")
        if table.num_rows:
            yield to_raw(table, columns, root, path)
        if bad:
            yield bad_rows(bad)


def _blocks(stream: pa.NativeFile, path: str) -> Iterator[bytes]:
    """The stream's bytes, cut behind line breaks."""
    rest = b""
    while data := stream.read(BLOCK_BYTES):
        end = data.rfind(b"\n") + 1
        if end == 0:
            rest += data
            if len(rest) > MAX_LINE_BYTES:
                raise DataError(
                    f"{path}: a line of more than {MAX_LINE_BYTES // 2**20} MiB; "
                    "one JSON object per line is due"
                )
            continue
        block, rest = rest + data[:end], data[end:]
        if block.strip():
            yield block
    if rest.strip():
        yield rest


def _parse_slowly(block: bytes, columns: Columns, before: int) -> tuple[pa.Table, list[str]]:
    """Line by line: for blocks with a broken line, or with fields of changing types."""
    rows: list[dict[str, Any]] = []
    bad = []
    for number, fields, line in _objects(block):
        if fields or line.strip() == b"{}":
            rows.append(fields)
        else:
            shown = shorten(line.decode("utf-8", "replace"))
            bad.append(f"line {before + number}: no JSON object: {shown}")
    arrays = {
        name: pa.array([_text(row.get(name)) for row in rows], pa.string())
        for name in [columns.url, *columns.extra]
    }
    for name in columns.captions:
        arrays[name] = pa.array([clean_texts(row.get(name)) for row in rows], TEXTS)
    return pa.table({name: arrays[name] for name in columns.names}), bad


def _objects(block: bytes) -> Iterable[tuple[int, dict[str, Any], bytes]]:
    """(line number, fields, line) of each line that is not empty; no fields: no JSON object."""
    for number, line in enumerate(block.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line.decode("utf-8", "replace"))
        except ValueError:
            fields = {}
        yield number, fields if isinstance(fields, dict) else {}, line


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
    if isinstance(value, str):
        return clean(value)
    return None if value is None else json.dumps(value)
