"""Cuts every source into chunks of rows, and finds rows with equal URLs before any is downloaded.
First step of the stage; a finished source's plan is kept when a run is taken up again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from caft.errors import DataError
from pipelines import storage
from pipelines.data.config import DataConfig, SourceConfig
from pipelines.data.paths import Chunk, Layout
from pipelines.data.sources import (
    CONTAINERS,
    LeftOut,
    detect_kind,
    list_containers,
    read_tables,
)
from pipelines.data.write import write_table
from pipelines.workers import run_tasks

INDEX_SCHEMA = pa.schema([("key", pa.binary(16)), ("characters", pa.int32())])


@dataclass(frozen=True)
class Plan:
    """All chunks in order.

    Attributes:
        fingerprint: a digest of every URL.
        left_out: of each source, what of its lists is not read, with the rows that hold it.
    """

    chunks: tuple[Chunk, ...]
    fingerprint: str
    left_out: tuple[dict[str, int | None], ...] = ()


def make_plan(config: DataConfig, layout: Layout) -> Plan:
    """Write the plan below `layout.plan`, or read it where it is finished.

    Raises:
        DataError: a source is missing, empty, corrupt or lacks a column.
    """
    if storage.exists(_plan_path(layout)):
        return load_plan(layout)
    numbers = range(len(config.sources))
    done = dict(run_tasks("plan", lambda n: plan_source(config, layout, n), numbers, len(numbers)))
    chunks: list[Chunk] = []
    fingerprint = hashlib.sha256()
    for number in numbers:
        fingerprint.update(done[number]["fingerprint"].encode())
        for entry in done[number]["chunks"]:
            chunks.append(Chunk(len(chunks), number, **entry))
    left_out = [done[number].get("left_out", {}) for number in numbers]
    write_plan(layout, chunks, fingerprint.hexdigest(), left_out)
    return load_plan(layout)


def write_plan(
    layout: Layout,
    chunks: Sequence[Chunk],
    fingerprint: str,
    left_out: Sequence[dict[str, int | None]] = (),
) -> None:
    plan = {
        "chunks": [asdict(chunk) for chunk in chunks],
        "fingerprint": fingerprint,
        "left_out": list(left_out),
    }
    storage.write_json(_plan_path(layout), plan)


def load_plan(layout: Layout) -> Plan:
    stored = storage.read_json(_plan_path(layout))
    chunks = tuple(Chunk(**chunk) for chunk in stored["chunks"])
    return Plan(chunks, stored["fingerprint"], tuple(stored.get("left_out", ())))


def plan_source(config: DataConfig, layout: Layout, number: int) -> dict[str, Any]:
    """Cut one source; its chunks (path, rows, container) and the digest of its URLs."""
    source = config.sources[number]
    receipt = storage.join(layout.plan, f"source-{number}.json")
    if storage.exists(receipt):
        return storage.read_json(receipt)
    fingerprint = hashlib.sha256()
    chunks: list[dict[str, Any]] = []
    left_out = LeftOut()
    if detect_kind(source) in CONTAINERS:
        for path in list_containers(source):
            fingerprint.update(path.encode())
            chunks.append({"path": path, "rows": None, "container": True})
    else:
        for table in _chunk_tables(source, config, left_out):
            keys = url_keys(table["url"])
            fingerprint.update(keys.tobytes())
            table = _sample(table, keys, source.weight)
            name = f"{number}-{len(chunks):05d}.parquet"
            write_table(storage.join(layout.plan, name), table)
            write_table(storage.join(layout.plan, f"index-{name}"), _index(table, keys))
            path = layout.relative(storage.join(layout.plan, name))
            chunks.append({"path": path, "rows": len(table), "container": False})
    if not chunks:
        raise DataError(f"{source.path}: no row in it; give a list with at least one URL")
    result = {
        "chunks": chunks,
        "fingerprint": fingerprint.hexdigest(),
        "left_out": left_out.rows,
    }
    storage.write_json(receipt, result)
    return result


def url_keys(urls: pa.ChunkedArray) -> np.ndarray:
    """The first 16 bytes (n,) of each URL's SHA-256: a row's key, in binary."""
    digests = (hashlib.sha256((url or "").encode()).digest()[:16] for url in urls.to_pylist())
    return np.frombuffer(b"".join(digests), dtype="V16")


def in_share(key: str, weight: float) -> bool:
    """Whether a key's row is in the share of its source that is taken."""
    return int(key[:16], 16) / 2.0**64 < weight


def _plan_path(layout: Layout) -> str:
    return storage.join(layout.plan, "plan.json")


def _chunk_tables(
    source: SourceConfig, config: DataConfig, left_out: LeftOut
) -> Iterator[pa.Table]:
    """The source's rows in tables of `chunk_rows`."""
    waiting: list[pa.Table] = []
    count = 0
    for table in read_tables(source, tuple(config.filters.columns), left_out):
        waiting.append(table)
        count += len(table)
        while count >= config.chunk_rows:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, config.chunk_rows)
            waiting, count = [joined.slice(config.chunk_rows)], count - config.chunk_rows
    if count:
        yield pa.concat_tables(waiting)


def caption_characters(table: pa.Table) -> pa.Array:
    """Characters of all captions of each planned row, int32."""
    captions = table["captions"].combine_chunks()
    texts = captions.flatten().field("text")
    ends = np.cumsum(pc.utf8_length(texts.flatten()).to_numpy(zero_copy_only=False))
    for lists in (texts, captions):  # totals up to the end of each cell, then of each row
        lengths = pc.fill_null(lists.value_lengths(), 0).to_numpy()
        ends = np.concatenate([[0], ends])[np.cumsum(lengths)]
    return pa.array(np.diff(ends, prepend=0), pa.int32())


def _sample(table: pa.Table, keys: np.ndarray, weight: float) -> pa.Table:
    """Reject rows outside the share of the source that is taken; a key's place never changes."""
    if weight == 1:
        return table
    place = np.frombuffer(keys.tobytes(), dtype=">u8")[::2] / 2.0**64
    left_out = pc.and_(pa.array(place >= weight), pc.is_null(table["reason"]))
    reason = pc.if_else(left_out, "not_sampled", table["reason"])
    return table.set_column(table.schema.get_field_index("reason"), "reason", reason)


def _damaged(table: pa.Table) -> pa.ChunkedArray:
    """Which rows have a text with U+FFFD; a chunk rejects them, and nothing is merged with them."""
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


def _index(table: pa.Table, keys: np.ndarray) -> pa.Table:
    """Key and length of captions of each row; no key where a row is rejected already."""
    column = pa.FixedSizeBinaryArray.from_buffers(
        INDEX_SCHEMA.field("key").type, len(keys), [None, pa.py_buffer(keys.tobytes())]
    )
    rejected = pc.or_(pc.is_valid(table["reason"]), _damaged(table)).combine_chunks()
    column = pc.if_else(rejected, pa.scalar(None, column.type), column)
    return pa.table([column, caption_characters(table)], schema=INDEX_SCHEMA)
