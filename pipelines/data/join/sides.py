"""Both sides of a join, cut into partitions by the keys: captions with them, images as numbers.
The join's first two steps; each partition is then joined by a task of its own."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import storage
from pipelines.data.blocks import write_blocks
from pipelines.data.config import SourceConfig
from pipelines.data.dedup.pairs import in_partitions
from pipelines.data.join.values import (
    KEY,
    caption_list,
    caption_value,
    image_fields,
    image_value,
    joined_list,
    key_array,
    keys_of,
)
from pipelines.data.paths import ROWS_PER_CHUNK, Chunk, Layout
from pipelines.data.sources import RAW_SCHEMA, LeftOut, detect_kind, paths, read_container
from pipelines.data.sources.detect import source_files
from pipelines.data.sources.lists import read_list
from pipelines.data.sources.raw import caption_characters, damaged_rows, text_keys
from pipelines.data.sources.tar_members import DamagedTar
from pipelines.data.write import read_table, write_table

CAPTION_SIDE = pa.schema([("key", KEY), ("captions", RAW_SCHEMA.field("captions").type)])
IMAGE_SIDE = pa.schema([("key", KEY), ("row", pa.int64())])
PARTITION_BYTES = 128 * 2**20  # of captions, that a task joins
RUN_BYTES = 64 * 2**20  # of captions, that are sorted by partition at a time
MAX_PARTITIONS = 4096
PACKED_SHRINKS = 4  # a packed list to a fraction of its bytes, or Parquet
SCAN_ROWS = 100_000


def partitions_of(source: SourceConfig) -> int:
    """Into how many partitions the captions of a source are cut, by the bytes of their list."""
    total = 0
    for file in source_files(caption_list(source)):
        packed = paths.suffix(file.path) in (".parquet", ".pq") or paths.codec(file.path)
        total += file.bytes * (PACKED_SHRINKS if packed else 1)
    return min(MAX_PARTITIONS, max(1, -(-total // PARTITION_BYTES)))


def read_captions(
    source: SourceConfig, number: int, folder: str, partitions: int
) -> dict[str, Any]:
    """Write the caption rows of one file of the list, in runs with a block for each partition.

    Returns:
        `runs` (paths), `rows`, `rejected` by reason, an `example` of what is joined, `left_out`.
    """
    receipt = storage.join(folder, f"captions-{number:05d}.json")
    if storage.exists(receipt):
        return storage.read_json(receipt)
    list_source = caption_list(source)
    file = source_files(list_source)[number]
    left_out, rejected = LeftOut(), Counter[str]()
    runs: list[str] = []
    rows, example = 0, None
    tables = read_list(file.path, list_source, detect_kind(list_source), (), left_out)

    def usable() -> Iterator[pa.Table]:
        nonlocal rows, example
        for table in tables:
            rows += len(table)
            table, value = _caption_side(table, source, rejected)
            example = example or value
            yield table

    for run in _runs(usable()):
        runs.append(storage.join(folder, f"captions-{number:05d}-{len(runs):05d}.blocks"))
        write_blocks(runs[-1], _partitioned(run, partitions))
    result = {
        "runs": runs,
        "rows": rows,
        "rejected": dict(rejected),
        "example": example,
        "left_out": left_out.rows,
    }
    storage.write_json(receipt, result)
    return result


def scan(chunk: Chunk, source: SourceConfig, folder: str) -> None:
    """Write the keys of the images of a container, which is read without its images."""
    path = _scan_path(folder, chunk)
    if storage.exists(path):
        return
    keys: list[np.ndarray] = []
    values: list[str | None] = []
    rows = read_container(chunk.path, source, image_fields(source), None, chunk.span, images=False)
    try:
        for row in rows:
            values.append(image_value(row["url"], row["columns"], source))
            if len(values) == SCAN_ROWS:
                keys.append(_nullable(values))
                values = []
    except DamagedTar:
        pass  # what it does not give is one row, whose captions nobody asks for
    keys.append(_nullable(values))
    write_table(path, _image_side(pa.chunked_array(keys, KEY)))


def gather_images(
    chunks: Sequence[Chunk],
    source: SourceConfig,
    layout: Layout,
    folder: str,
    number: int,
    partitions: int,
) -> dict[str, Any]:
    """Write the keys of many chunks as one file with a block for each partition.

    Returns:
        `path`, `images` and how many of them have a `key`, an `example` of what is joined.
    """
    receipt = storage.join(folder, f"images-{number:05d}.json")
    if storage.exists(receipt):
        return storage.read_json(receipt)
    tables, images, example = [IMAGE_SIDE.empty_table()], 0, None
    for chunk in chunks:
        if chunk.container:
            table = read_table(_scan_path(folder, chunk))
        else:
            values = planned_values(chunk, source, layout)
            example = example or next(filter(None, values), None)
            table = pa.table(
                {"key": _nullable(values), "row": np.arange(len(values))}, schema=IMAGE_SIDE
            )
        images += len(table)
        rows = pc.add(table["row"], pa.scalar(chunk.number * ROWS_PER_CHUNK, pa.int64()))
        tables.append(table.set_column(1, "row", rows).filter(table["key"].is_valid()))
    joined = pa.concat_tables(tables)
    path = storage.join(folder, f"images-{number:05d}.blocks")
    write_blocks(path, _partitioned(joined, partitions))
    result = {"path": path, "images": images, "keys": len(joined), "example": example}
    storage.write_json(receipt, result)
    return result


def planned_values(chunk: Chunk, source: SourceConfig, layout: Layout) -> list[str | None]:
    """What the rows of a planned chunk are joined by."""
    table = read_table(storage.join(layout.output, chunk.path), ["url", "columns"])
    rows = zip(table["url"].to_pylist(), table["columns"].to_pylist(), strict=True)
    return [image_value(url, dict(columns or ()), source) for url, columns in rows]


def _caption_side(
    table: pa.Table, source: SourceConfig, rejected: Counter[str]
) -> tuple[pa.Table, str | None]:
    """Usable rows of a list with their keys, and what the first of them is joined by."""
    values = [caption_value(url, source) for url in table["url"].to_pylist()]
    reasons = table["reason"].to_pylist()
    damaged = damaged_rows(table).to_pylist()
    characters = caption_characters(table).to_pylist()
    is_url = joined_list(source).on == "url"
    usable = []
    for place, value in enumerate(values):
        reason = reasons[place]
        if reason == "bad_url" and value is not None and not is_url:
            reason = None  # a key or a file's name need not lead anywhere
        if reason is None and damaged[place]:
            reason = "bad_text"
        elif reason is None and value is None:
            reason = "bad_url"
        elif reason is None and not characters[place]:
            reason = "no_caption"
        if reason is None:
            usable.append(place)
        else:
            rejected[reason] += 1
    kept = [values[place] for place in usable]
    captions = table["captions"].take(pa.array(usable, pa.int64()))
    side = pa.table([key_array(text_keys(kept)), captions], schema=CAPTION_SIDE)
    return side, next(iter(kept), None)


def _runs(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    waiting, size = [CAPTION_SIDE.empty_table()], 0
    for table in tables:
        waiting.append(table)
        size += table.nbytes
        if size >= RUN_BYTES:
            yield pa.concat_tables(waiting)
            waiting, size = [CAPTION_SIDE.empty_table()], 0
    if size:
        yield pa.concat_tables(waiting)


def _partitioned(table: pa.Table, partitions: int) -> list[pa.Table]:
    """A table's rows by the partition of their keys, in their order within each."""
    if partitions == 1:
        return [table]
    parts = in_partitions(keys_of(table), partitions)
    order = np.argsort(parts, kind="stable")
    edges = np.searchsorted(parts[order], np.arange(partitions + 1))
    table = table.combine_chunks()
    return [table.take(pa.array(order[low:high])) for low, high in itertools.pairwise(edges)]


def _nullable(values: Sequence[str | None]) -> pa.Array:
    keys = key_array(text_keys(values))
    missing = pa.array([value is None for value in values], pa.bool_())
    return pc.if_else(missing, pa.scalar(None, KEY), keys)


def _image_side(keys: pa.Array | pa.ChunkedArray) -> pa.Table:
    return pa.table({"key": keys, "row": np.arange(len(keys))}, schema=IMAGE_SIDE)


def _scan_path(folder: str, chunk: Chunk) -> str:
    return storage.join(folder, f"scan-{chunk.number:05d}.parquet")
