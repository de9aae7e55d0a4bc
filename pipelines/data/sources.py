"""Reads lists of URLs and captions, and cuts them into chunks of fixed rows.
One streaming pass over all sources; each chunk is then a unit of work that can be repeated."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from caft.errors import DataError
from pipelines import storage
from pipelines.data.config import DataConfig, SourceConfig

PLAN = "plan"
PLAN_SCHEMA = pa.schema(
    [
        ("url", pa.string()),
        ("split", pa.string()),
        (
            "texts",
            pa.list_(
                pa.struct(
                    [
                        ("source", pa.string()),
                        ("kind", pa.string()),
                        ("texts", pa.list_(pa.string())),
                    ]
                )
            ),
        ),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
CSV_BLOCK_BYTES = 16 * 2**20


def plan_chunks(config: DataConfig) -> dict[str, Any]:
    """Write `plan/chunk-NNNNN.parquet` under the output and return the plan's summary.

    A URL that an earlier row of any source has is marked `duplicate_url`. The summary is written
    last, so an interrupted plan is made again.

    Raises:
        DataError: a source is missing, empty, corrupt or lacks a column.
    """
    summary_path = storage.join(config.output, PLAN, "plan.json")
    if storage.exists(summary_path):
        return storage.read_json(summary_path)
    seen: set[bytes] = set()
    fingerprint = hashlib.sha256()
    rows: list[dict[str, Any]] = []
    sources: dict[str, int] = {}
    chunks = total = 0
    for source in config.sources:
        count = 0
        for row in read_source(source):
            digest = hashlib.sha256(row["url"].encode()).digest()[:16]
            fingerprint.update(digest)
            if row["reason"] is None and digest in seen:
                row |= {"reason": "duplicate_url", "detail": ""}
            seen.add(digest)
            rows.append(row)
            count += 1
            if len(rows) == config.chunk_rows:
                _write_chunk(config.output, chunks, rows)
                rows, chunks = [], chunks + 1
        if count == 0:
            raise DataError(f"{source.path}: no row in it; give a list with at least one URL")
        sources[source.name] = count
        total += count
    if rows:
        _write_chunk(config.output, chunks, rows)
        chunks += 1
    summary = {
        "chunks": chunks,
        "rows": total,
        "sources": sources,
        "input_fingerprint": fingerprint.hexdigest(),
    }
    storage.write_json(summary_path, summary)
    return summary


def read_source(source: SourceConfig) -> Iterator[dict[str, Any]]:
    """Stream a source as plan rows, in file order."""
    columns: dict[str, str] | None = None
    for batch in _batches(source):
        if columns is None:
            columns = _require_columns(source, batch.schema)
        for row in batch.to_pylist():
            yield _plan_row(row, source, columns)


def check_source(source: SourceConfig) -> None:
    """Look at a source's first rows, so that a wrong one fails before anything starts.

    Raises:
        DataError: as `plan_chunks`.
    """
    if next(read_source(source), None) is None:
        raise DataError(f"{source.path}: no row in it; give a list with at least one URL")


def read_chunk(output: str, index: int) -> list[dict[str, Any]]:
    fs, path = storage.filesystem(storage.join(output, PLAN, f"chunk-{index:05d}.parquet"))
    return pq.read_table(path, filesystem=fs).to_pylist()


def _write_chunk(output: str, index: int, rows: list[dict[str, Any]]) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, PLAN_SCHEMA), sink, compression="zstd")
    path = storage.join(output, PLAN, f"chunk-{index:05d}.parquet")
    storage.write_bytes(path, sink.getvalue().to_pybytes())


def _batches(source: SourceConfig) -> Iterator[pa.RecordBatch]:
    if not storage.exists(source.path):
        raise DataError(f"{source.path}: no such file (source '{source.name}')")
    fs, path = storage.filesystem(source.path)
    try:
        if path.endswith(".parquet"):
            with pq.ParquetFile(path, filesystem=fs) as file:
                yield from file.iter_batches()
        elif path.endswith((".csv", ".tsv")):
            yield from _csv_batches(source, fs, path)
        else:
            raise DataError(f"{source.path}: not a .csv, .tsv or .parquet file")
    except pa.ArrowInvalid as error:
        kind = "corrupt Parquet" if path.endswith(".parquet") else "not a readable table"
        raise DataError(f"{source.path}: {kind}: {' '.join(str(error).split())}") from None


def _csv_batches(source: SourceConfig, fs: pa.fs.FileSystem, path: str) -> Iterator[pa.RecordBatch]:
    if fs.get_file_info(path).size == 0:
        raise DataError(f"{source.path}: the file is empty")
    names = [source.url_column, *source.caption_columns]
    with fs.open_input_stream(path) as stream:
        yield from pacsv.open_csv(
            stream,
            read_options=pacsv.ReadOptions(block_size=CSV_BLOCK_BYTES),
            parse_options=pacsv.ParseOptions(
                delimiter="\t" if path.endswith(".tsv") else ",", newlines_in_values=True
            ),
            convert_options=pacsv.ConvertOptions(
                column_types={name: pa.string() for name in names}, strings_can_be_null=False
            ),
        )


def _require_columns(source: SourceConfig, schema: pa.Schema) -> dict[str, str]:
    """The caption columns that are there, column -> kind."""
    present = ", ".join(schema.names)
    if source.url_column not in schema.names:
        raise DataError(
            f"{source.path}: no URL column '{source.url_column}'; columns are: {present}; "
            "name the right one in url_column"
        )
    found = {name: kind for name, kind in source.caption_columns.items() if name in schema.names}
    if not found:
        raise DataError(
            f"{source.path}: no caption column; looked for {', '.join(source.caption_columns)}; "
            f"columns are: {present}; name them in caption_columns"
        )
    if source.path.endswith(".parquet"):
        for name in found:
            if name.endswith("_captions") and pa.types.is_string(schema.field(name).type):
                raise DataError(
                    f"{source.path}: column '{name}' holds strings, a list of strings is due; "
                    "a sentence must not be taken for a list of characters"
                )
    return dict(found)


def _plan_row(row: dict[str, Any], source: SourceConfig, columns: dict[str, str]) -> dict[str, Any]:
    texts = []
    for column, kind in columns.items():
        value = _texts(row[column])
        if value:
            texts.append({"source": column.removesuffix("_captions"), "kind": kind, "texts": value})
    planned = {"url": row[source.url_column] or "", "split": source.split, "texts": texts}
    reason = None if texts else "no_caption"
    return {**planned, "reason": reason, "detail": "" if texts else "every caption column is empty"}


def _texts(value: Any) -> list[str]:
    """A cell as texts: a list stays one; a CSV cell may spell a list, or is one text."""
    if value is None:
        return []
    if isinstance(value, str):
        spelled = _spelled_list(value)
        value = [value] if spelled is None else spelled
    return [text.strip() for text in value if isinstance(text, str) and text.strip()]


def _spelled_list(cell: str) -> list[Any] | None:
    """The list that a CSV cell spells in JSON or Python, or None for ordinary text."""
    if not (cell.lstrip().startswith("[") and cell.rstrip().endswith("]")):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(cell)
        except (ValueError, SyntaxError):
            continue
        return value if isinstance(value, list) else None
    return None
