"""Rows of lists with equal URLs: of one source they are one image with several captions, of several
sources all but one go. Between plan and chunks, so that no image is fetched twice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines import storage
from pipelines.data.config import DataConfig
from pipelines.data.dedup.pairs import exact_duplicates, in_partition
from pipelines.data.gathered import Gathered
from pipelines.data.paths import ROWS_PER_CHUNK, Chunk, Layout
from pipelines.data.planned import INDEX_SCHEMA
from pipelines.data.sources import RAW_SCHEMA
from pipelines.data.write import read_table, write_table
from pipelines.workers import run_tasks

# `into`: the row that has its captions; none: its image is another source's.
SCHEMA = pa.schema([("row", pa.int64()), ("into", pa.int64())])
MOVED_SCHEMA = pa.schema([("into", pa.int64()), ("captions", RAW_SCHEMA.field("captions").type)])
MOVED_ROWS = 100_000  # whose captions one task gathers
MOVED_ROW_GROUP = 2_000


@dataclass(frozen=True)
class EqualUrls:
    """What becomes of the rows of one chunk, by their place in it."""

    duplicate: list[int]
    merged: list[int]
    moved: int | None  # number of the file with captions that come to the chunk's rows


def equal_urls(
    chunks: Sequence[Chunk], config: DataConfig, layout: Layout, concurrency: int
) -> dict[int, EqualUrls]:
    """Chunk -> its rows that need no download, and where captions that come to it are.

    Of a source's rows with one URL the first gets the captions of all. Of several sources' the one
    with the longest captions stays. Chunks of containers are not asked: what they hold is known
    once they are read.
    """
    path = _path(layout)
    lists = [chunk for chunk in chunks if not chunk.container]
    if not storage.exists(path):
        rows = sum(chunk.rows or 0 for chunk in lists)
        partitions = max(1, -(-rows // config.duplicates.partition_rows))
        _gathered(lists, layout).make("gather_urls", concurrency)

        def find(part: int) -> dict[str, list[int]]:
            return _find(lists, layout, part, partitions)

        found = [some for _, some in run_tasks("equal_urls", find, range(partitions), concurrency)]
        columns = [
            pa.array([value for some in found for value in some[name]], pa.int64())
            for name in SCHEMA.names
        ]
        table = pa.Table.from_arrays(columns, schema=SCHEMA).sort_by("row")
        _gather(table, lists, layout, concurrency)
        write_table(path, table)
    return _by_chunk(read_table(path))


def no_equal_urls(layout: Layout) -> None:
    """Write that nothing is equal: what a retry plans has been compared before."""
    write_table(_path(layout), SCHEMA.empty_table())


def moved_captions(layout: Layout, number: int, chunk: int) -> dict[int, list[dict[str, Any]]]:
    """Place in a chunk -> captions that come to its row from rows of the same URL."""
    first = chunk * ROWS_PER_CHUNK
    bounds = [("into", ">=", first), ("into", "<", first + ROWS_PER_CHUNK)]
    captions: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in read_table(_moved_path(layout, number), filters=bounds).to_pylist():
        captions[row["into"] - first] += row["captions"]
    return dict(captions)


def planned_with_captions(path: str, layout: Layout) -> pa.Table:
    """A plan file of any generation, by its path in the dataset, with the captions that came to
    its rows."""
    table = read_table(storage.join(layout.output, path))
    plan = storage.read_json(storage.join(layout.plan, "plan.json"))
    number = next((one["number"] for one in plan["chunks"] if one["path"] == path), None)
    if number is None:
        return table  # of a retry, whose plan holds them
    equal = _by_chunk(read_table(_path(layout))).get(number)
    if equal is None or equal.moved is None:
        return table
    return with_captions(table, moved_captions(layout, equal.moved, number))


def with_captions(table: pa.Table, captions: dict[int, list[dict[str, Any]]]) -> pa.Table:
    """Planned rows with further captions, by their place in the table; each caption once."""
    if not captions:
        return table
    cells = table["captions"].to_pylist()
    for place, more in captions.items():
        cells[place] = [*cells[place], *(one for one in more if one not in cells[place])]
    index = table.schema.get_field_index("captions")
    return table.set_column(index, "captions", pa.array(cells, MOVED_SCHEMA.field(1).type))


def _path(layout: Layout) -> str:
    return storage.join(layout.plan, "duplicates.parquet")


def _moved_path(layout: Layout, number: int) -> str:
    return storage.join(layout.plan, f"moved-{number:05d}.parquet")


def _find(lists: list[Chunk], layout: Layout, part: int, partitions: int) -> dict[str, list[int]]:
    """`row` and `into` (-1: none) of the rows of one partition that are not downloaded."""
    keys, characters, ids = _keys_of(lists, layout, part, partitions)
    source_of = {chunk.number: chunk.source for chunk in lists}
    sources = np.array([source_of[n] for n in (ids // ROWS_PER_CHUNK).tolist()], np.int64)
    some = characters > 0  # a row without a caption has nothing to bring
    into = _first_of_source(keys[some], sources[some], ids[some])
    moves = into != ids[some]
    total = characters.copy()
    np.add.at(total, np.searchsorted(ids, into[moves]), characters[some][moves])  # ids rise
    stays = np.ones(len(ids), bool)
    stays[np.flatnonzero(some)[moves]] = False
    dropped = exact_duplicates(keys[stays], total[stays], ids[stays])[0]
    gone = set(dropped.tolist())
    pairs = list(zip(ids[some][moves].tolist(), into[moves].tolist(), strict=True))
    return {
        "row": [*gone, *(row for row, _ in pairs)],
        "into": [None] * len(gone) + [None if to in gone else to for _, to in pairs],
    }


def _first_of_source(keys: np.ndarray, sources: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The first row (n,) of the same key and source, for each row."""
    words = np.ascontiguousarray(keys).view(np.uint64).reshape(len(keys), 2)
    order = np.lexsort((ids, sources, words[:, 1], words[:, 0]))
    columns = (words[order, 0], words[order, 1], sources[order])
    first = np.ones(len(order), bool)
    if len(order):
        first[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    into = np.empty(len(ids), np.int64)
    into[order] = ids[order][first][np.cumsum(first) - 1]
    return into


def _gather(table: pa.Table, lists: list[Chunk], layout: Layout, concurrency: int) -> None:
    """Write the captions of merged rows where the chunks that get them find them."""
    merged = table.filter(table["into"].is_valid()).sort_by(
        [("into", "ascending"), ("row", "ascending")]
    )
    groups = _groups(merged["into"].to_numpy())
    by_number = {chunk.number: chunk for chunk in lists}

    def gather(number: int) -> None:
        group = merged.slice(*groups[number])
        captions: dict[int, Any] = {}
        rows = group["row"].to_numpy()
        for chunk in np.unique(rows // ROWS_PER_CHUNK).tolist():
            mine = rows[rows // ROWS_PER_CHUNK == chunk]
            planned = read_table(storage.join(layout.output, by_number[chunk].path), ["captions"])
            taken = planned["captions"].take(pa.array(mine % ROWS_PER_CHUNK)).to_pylist()
            captions |= dict(zip(mine.tolist(), taken, strict=True))
        cells = [captions[row] for row in rows.tolist()]
        moved = pa.table([group["into"], pa.array(cells, MOVED_SCHEMA.field(1).type)], MOVED_SCHEMA)
        write_table(_moved_path(layout, number), moved, MOVED_ROW_GROUP)

    for _ in run_tasks("merge_captions", gather, range(len(groups)), concurrency):
        pass


def _groups(into: np.ndarray) -> list[tuple[int, int]]:
    """(start, length) of runs of sorted targets: whole chunks, about MOVED_ROWS each."""
    groups: list[tuple[int, int]] = []
    start = 0
    while start < len(into):
        chunk = into[min(start + MOVED_ROWS, len(into)) - 1] // ROWS_PER_CHUNK
        end = int(np.searchsorted(into, (chunk + 1) * ROWS_PER_CHUNK))
        groups.append((start, end - start))
        start = end
    return groups


def _by_chunk(table: pa.Table) -> dict[int, EqualUrls]:
    if "into" not in table.column_names:  # of a version that merged nothing
        table = table.append_column("into", pa.nulls(len(table), pa.int64()))
    duplicate: defaultdict[int, list[int]] = defaultdict(list)
    merged: defaultdict[int, list[int]] = defaultdict(list)
    targets = []
    for row, into in zip(table["row"].to_pylist(), table["into"].to_pylist(), strict=True):
        (duplicate if into is None else merged)[row // ROWS_PER_CHUNK].append(row % ROWS_PER_CHUNK)
        if into is not None:
            targets.append(into)
    sorted_targets = np.sort(np.array(targets, np.int64))
    moved = {
        int(chunk): number
        for number, (start, length) in enumerate(_groups(sorted_targets))
        for chunk in np.unique(sorted_targets[start : start + length] // ROWS_PER_CHUNK)
    }
    return {
        chunk: EqualUrls(duplicate[chunk], merged[chunk], moved.get(chunk))
        for chunk in {*duplicate, *merged, *moved}
    }


def _gathered(chunks: Sequence[Chunk], layout: Layout) -> Gathered:
    names = (chunk.path.rpartition("/")[2] for chunk in chunks)
    files = tuple(storage.join(layout.plan, f"index-{name}") for name in names)
    return Gathered(files, storage.join(layout.work, "urls"), tuple(INDEX_SCHEMA.names))


def _keys_of(
    chunks: list[Chunk], layout: Layout, part: int, partitions: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys, caption characters and row numbers (n,) of one partition of all planned rows."""
    found = [(np.empty(0, "V16"), np.empty(0, np.int64), np.empty(0, np.int64))]
    for place, table in _gathered(chunks, layout).tables():
        chunk = chunks[place]
        keys = table["key"].to_pylist()
        there = np.flatnonzero([key is not None for key in keys])
        joined = np.frombuffer(b"".join(key for key in keys if key is not None), "V16")
        mine = in_partition(joined, part, partitions)
        rows = there[mine] + chunk.number * ROWS_PER_CHUNK
        characters = table["characters"].to_numpy().astype(np.int64)[there[mine]]
        found.append((joined[mine], characters, rows))
    keys, characters, rows = (np.concatenate(column) for column in zip(*found, strict=True))
    return keys, characters, rows
