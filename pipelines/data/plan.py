"""Cuts every source into chunks of rows, and finds rows with equal URLs before any is downloaded.
First step of the stage; a finished source's plan is kept when a run is taken up again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from caft.errors import DataError
from pipelines import storage
from pipelines.data.config import DataConfig, SourceConfig
from pipelines.data.join.flow import join_captions
from pipelines.data.join.values import image_fields
from pipelines.data.paths import Chunk, Layout
from pipelines.data.planned import write_planned
from pipelines.data.sources import CONTAINERS, LeftOut, detect_kind, read_tables
from pipelines.data.sources.detect import source_files
from pipelines.data.sources.img2dataset import read_failed
from pipelines.data.sources.paths import File
from pipelines.data.sources.raw import text_keys
from pipelines.data.sources.tar_members import BLOCK, can_be_cut
from pipelines.workers import run_tasks


@dataclass(frozen=True)
class Plan:
    """All chunks in order.

    Attributes:
        fingerprint: a digest of every URL.
        left_out: of each source, what of its lists is not read, with the rows that hold it.
        joined: number of a source -> what became of the rows of its `captions_from`.
    """

    chunks: tuple[Chunk, ...]
    fingerprint: str
    left_out: tuple[dict[str, int | None], ...] = ()
    joined: dict[int, dict[str, Any]] = field(default_factory=dict)


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
    joined = {}
    for number, source in enumerate(config.sources):
        if source.captions_from is not None:
            mine = [chunk for chunk in chunks if chunk.source == number]
            placed, joined[number] = join_captions(source, number, mine, layout)
            chunks[mine[0].number : mine[-1].number + 1] = placed
    write_plan(layout, chunks, fingerprint.hexdigest(), left_out, joined)
    return load_plan(layout)


def write_plan(
    layout: Layout,
    chunks: Sequence[Chunk],
    fingerprint: str,
    left_out: Sequence[dict[str, int | None]] = (),
    joined: Mapping[int, dict[str, Any]] | None = None,
) -> None:
    plan = {
        "chunks": [asdict(chunk) for chunk in chunks],
        "fingerprint": fingerprint,
        "left_out": list(left_out),
        "joined": {str(number): counts for number, counts in (joined or {}).items()},
    }
    storage.write_json(_plan_path(layout), plan)


def load_plan(layout: Layout) -> Plan:
    stored = storage.read_json(_plan_path(layout))
    chunks = tuple(Chunk(**chunk) for chunk in stored["chunks"])
    joined = {int(number): counts for number, counts in stored.get("joined", {}).items()}
    return Plan(chunks, stored["fingerprint"], tuple(stored.get("left_out", ())), joined)


def plan_source(config: DataConfig, layout: Layout, number: int) -> dict[str, Any]:
    """Cut one source; its chunks (path, rows, container) and the digest of its URLs."""
    source = config.sources[number]
    receipt = storage.join(layout.plan, f"source-{number}.json")
    if storage.exists(receipt):
        return storage.read_json(receipt)
    fingerprint = hashlib.sha256()
    chunks: list[dict[str, Any]] = []
    left_out = LeftOut()
    tables: Iterator[pa.Table] = iter(())
    extra = tuple(dict.fromkeys([*config.filters.columns, *image_fields(source)]))
    if detect_kind(source) in CONTAINERS:
        for file in source_files(source):
            fingerprint.update(file.path.encode())
            for span in _spans(file, source, config.chunk_mb * 2**20):
                chunks.append({"path": file.path, "rows": None, "container": True, "span": span})
    else:
        tables = read_tables(source, extra, left_out)
    for table in _of_size(chain(tables, read_failed(source, extra)), config.chunk_rows):
        keys = text_keys(table["url"].to_pylist())
        fingerprint.update(keys.tobytes())
        table = _sample(table, keys, source.weight)
        name = f"{number}-{len(chunks):05d}.parquet"
        path = layout.relative(storage.join(layout.plan, name))
        write_planned(layout, path, table)
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


def _spans(file: File, source: SourceConfig, most_bytes: int) -> list[list[int] | None]:
    """First bytes and ends of the parts that a container is cut into; None: it is one."""
    count = -(-file.bytes // most_bytes)
    if count <= 1 or detect_kind(source) != "webdataset" or not can_be_cut(file.path):
        return [None]
    edges = [BLOCK * (file.bytes * n // count // BLOCK) for n in range(count)]
    return [[start, end] for start, end in pairwise([*edges, 2**62])]


def in_share(key: str, weight: float) -> bool:
    """Whether a key's row is in the share of its source that is taken."""
    return int(key[:16], 16) / 2.0**64 < weight


def _plan_path(layout: Layout) -> str:
    return storage.join(layout.plan, "plan.json")


def _of_size(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of `rows`."""
    waiting: list[pa.Table] = []
    count = 0
    for table in tables:
        waiting.append(table)
        count += len(table)
        while count >= rows:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, rows)
            waiting, count = [joined.slice(rows)], count - rows
    if count:
        yield pa.concat_tables(waiting)


def _sample(table: pa.Table, keys: np.ndarray, weight: float) -> pa.Table:
    """Reject rows outside the share of the source that is taken; a key's place never changes."""
    if weight == 1:
        return table
    place = np.frombuffer(keys.tobytes(), dtype=">u8")[::2] / 2.0**64
    left_out = pc.and_(pa.array(place >= weight), pc.is_null(table["reason"]))
    reason = pc.if_else(left_out, "not_sampled", table["reason"])
    return table.set_column(table.schema.get_field_index("reason"), "reason", reason)
