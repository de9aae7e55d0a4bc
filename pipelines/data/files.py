"""Candidates to the dataset's files: parts of a set size without what is dropped, and rejects.
Rows come in the order of their lists, so equal inputs give equal files whatever happened."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from caft.errors import DataError
from pipelines import storage
from pipelines.data.chunk import CANDIDATE_REJECT_SCHEMA, CANDIDATE_SCHEMA, PLACE
from pipelines.data.config import DataConfig
from pipelines.data.dataset import DATASET_SCHEMA, REJECT_SCHEMA
from pipelines.data.dedup.duplicates import drops_path
from pipelines.data.paths import ROWS_PER_CHUNK, Chunk, Layout, read_receipt
from pipelines.data.reasons import REASONS
from pipelines.data.write import ParquetSink, group_ends, image_bytes, read_table

REJECTS_ROW_GROUP = 10_000
PART = re.compile(r"part(?:-r(\d+))?-\d{5,}(?:-rest)?\.parquet")
SETTLE_S, LOOK_EVERY_S = 10.0, 0.2


def group_chunks(
    chunks: Sequence[Chunk], candidate_bytes: dict[int, int], file_bytes: float
) -> list[list[int]]:
    """Runs of consecutive chunks of one source that fill a part file each.

    Args:
        candidate_bytes: chunk -> size of its candidates; chunks without any are not there.
    """
    groups: list[list[int]] = []
    source, filled = None, 0.0
    for chunk in chunks:
        size = candidate_bytes.get(chunk.number, 0)
        if source != chunk.source or (filled and filled + size > file_bytes):
            groups.append([])
            source, filled = chunk.source, 0.0
        groups[-1].append(chunk.number)
        filled += size
    return groups


def write_files(
    number: int, chunks: Sequence[Chunk], config: DataConfig, layout: Layout
) -> dict[str, Any]:
    """Write one part and the rejects of its chunks, then delete their candidates.

    Returns:
        the manifest's entries: `part` (None without rows) and `rejects`, a list.
    """
    receipt = layout.receipt("files", number)
    if (done := read_receipt(receipt)) is not None:  # Ray has started the task again
        return done
    source = config.sources[chunks[0].source].name
    drops = read_table(drops_path(layout))
    rejects = []
    name = layout.part(number)
    with ParquetSink(
        storage.join(layout.output, name), DATASET_SCHEMA, config.row_group_rows
    ) as part:
        for chunk in chunks:
            dropped = _drops_of(drops, chunk.number)
            table = _candidates(layout, chunk.number)
            places = table[PLACE.name].to_numpy()
            goes = np.isin(places, dropped[PLACE.name].to_numpy())
            for rows in _in_order(table, places, ~goes, config.row_group_rows):
                part.extend(as_stored(rows, config))
            entry = _write_rejects(chunk, _gone(table, goes, dropped), source, layout)
            rejects += [entry] if entry else []
    entries = {
        "part": part.entry and {"name": name, "source": source, **part.entry},
        "rejects": rejects,
    }
    storage.write_json(receipt, entries)
    for chunk in chunks:  # from here on the receipt stands for them
        storage.delete_file(layout.candidate(chunk.number))
    return entries


def _drops_of(drops: pa.Table, chunk: int) -> pa.Table:
    """Rows of `drops` in one chunk, with their place in it."""
    first = chunk * ROWS_PER_CHUNK
    rows = drops["row"].to_numpy()
    low, high = np.searchsorted(rows, [first, first + ROWS_PER_CHUNK])
    places = pa.array(rows[low:high] - first, PLACE.type)
    return drops.slice(low, high - low).append_column(PLACE, places)


def _candidates(layout: Layout, chunk: int) -> pa.Table:
    """A chunk's candidates as they were written: in the order in which they were fetched."""
    kept = storage.read_json(layout.receipt("chunk", chunk))["kept"]
    if kept is None:
        return CANDIDATE_SCHEMA.empty_table()
    return _as_written(layout.candidate(chunk), kept["sha256"], layout)


def _as_written(path: str, digest: str, layout: Layout) -> pa.Table:
    """A file of a chunk. Raises DataError where it has changed since the chunk's receipt."""
    if storage.sha256(path) != digest:
        raise DataError(
            f"{path}: has changed since it was written, its digest is not that of its receipt; "
            f"delete {layout.work}, and run the same command again to make its rows anew"
        )
    return read_table(path)


def _in_order(
    table: pa.Table, places: np.ndarray, stays: np.ndarray, count: int
) -> Iterator[pa.Table]:
    """Rows of `table` that stay, by rising place, as many as a row group takes at a time: images of
    a large chunk would not fit into one column, and a sorted copy would double them."""
    batches = table.select(DATASET_SCHEMA.names).to_batches()
    starts = np.cumsum([0, *map(len, batches)])
    order = np.argsort(places)
    order = order[stays[order]]
    ends = group_ends(image_bytes(table)[order], count)
    for rows in (order[first:end] for first, end in pairwise([0, *ends])):
        inside = np.searchsorted(starts, rows, side="right") - 1
        named = np.unique(inside)
        pieces = [batches[n].take(pa.array(rows[inside == n] - starts[n])) for n in named]
        taken = np.concatenate([rows[inside == n] for n in named])
        back = np.argsort(taken)[np.argsort(np.argsort(rows))]
        yield pa.Table.from_batches(pieces).take(pa.array(back))


def _gone(table: pa.Table, goes: np.ndarray, dropped: pa.Table) -> pa.Table:
    """Rejects, with their place, of the candidates that are dropped."""
    gone = table.select(["key", "url", PLACE.name]).filter(pa.array(goes)).sort_by(PLACE.name)
    dropped = dropped.sort_by(PLACE.name)
    reasons = dropped["reason"].to_pylist()
    gone = gone.append_column("stage", pa.array([REASONS[r].stage for r in reasons], pa.string()))
    for name in ("reason", "detail"):
        gone = gone.append_column(name, dropped[name])
    return gone.select(CANDIDATE_REJECT_SCHEMA.names)


def _write_rejects(
    chunk: Chunk, gone: pa.Table, source: str, layout: Layout
) -> dict[str, Any] | None:
    """The chunk's rejects and its dropped candidates as one file; its entry, None without any."""
    tables = [gone.cast(CANDIDATE_REJECT_SCHEMA)]
    path = layout.candidate_rejects(chunk.number)
    if storage.exists(path):
        entry = storage.read_json(layout.receipt("chunk", chunk.number)).get("rejects")
        tables.append(_as_written(path, entry["sha256"], layout) if entry else read_table(path))
    table = pa.concat_tables(tables).sort_by(PLACE.name).select(REJECT_SCHEMA.names)
    name = layout.rejects(chunk.number)
    with ParquetSink(storage.join(layout.output, name), REJECT_SCHEMA, REJECTS_ROW_GROUP) as sink:
        sink.extend(table)
    if sink.entry is None:
        return None
    return {
        "name": name,
        "source": source,
        "plan": None if chunk.container else chunk.path,
        "reasons": dict(sorted(Counter(table["reason"].to_pylist()).items())),
        **sink.entry,
    }


def as_stored(rows: pa.Table, config: DataConfig) -> pa.Table:
    """Rows of the dataset, with their label maps if any are asked for."""
    if config.superpixels is None:
        return rows
    from pipelines.superpixel_columns import (
        with_superpixels,  # and PyTorch, which others do without
    )

    return with_superpixels(rows, config.superpixels)


def delete_temporaries(layout: Layout) -> None:
    """Delete files that are not whole, of processes that ended while they wrote them."""
    for path in _temporaries(layout):
        storage.delete_file(path)


def await_temporaries(layout: Layout) -> None:
    """As `delete_temporaries`, once tasks that were cancelled had time to end by themselves."""
    deadline = time.monotonic() + SETTLE_S
    while _temporaries(layout) and time.monotonic() < deadline:
        time.sleep(LOOK_EVERY_S)
    delete_temporaries(layout)


def delete_leftovers(output: str, manifest: dict[str, Any]) -> None:
    """Delete working files, and parts that a retry replaced; a retry not yet finished keeps its."""
    for generation in range(manifest["generation"] + 1):
        storage.delete_folder(Layout(output, generation).work)
    delete_temporaries(Layout(output, manifest["generation"]))
    for name in unlisted_parts(output, manifest):
        storage.delete_file(storage.join(output, name))


def unlisted_parts(output: str, manifest: dict[str, Any]) -> list[str]:
    """Names of parts of finished generations that the manifest does not list."""
    listed = {entry["name"] for entry in [*manifest["files"], *manifest["rejects"]]}
    names = storage.list_files(output, ".parquet")
    names += [f"rejects/{n}" for n in storage.list_files(f"{output}/rejects", ".parquet")]
    found = ((name, PART.fullmatch(name.removeprefix("rejects/"))) for name in names)
    return [
        name
        for name, part in found
        if part and int(part[1] or 0) <= manifest["generation"] and name not in listed
    ]


def _temporaries(layout: Layout) -> list[str]:
    if not storage.is_local(layout.output):
        return []  # a remote store shows a file once it is whole
    folders = [layout.output, f"{layout.output}/rejects", layout.plan, layout.work]
    return [
        storage.join(folder, name)
        for folder in folders
        for name in storage.list_files(folder, f".{storage.TEMPORARY}")
    ]
