"""Rows that show the same picture: near hashes that a second look confirms.
The last of the duplicate passes; hashes are compared first, and looks of those alone are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pyarrow as pa

from pipelines import storage
from pipelines.data.dedup.index import is_in, load_chunk, load_index, load_looks, numbered, run_pass
from pipelines.data.dedup.looks import as_looks, same_picture
from pipelines.data.dedup.pairs import (
    Pairs,
    choose_bands,
    drop_near,
    in_partition,
    in_slice,
    near_pairs,
)
from pipelines.data.paths import Layout
from pipelines.data.write import count_rows, read_table, write_table

LOOKS_AT_A_TIME = 1_000_000  # in one task: some 500 MB
CHUNKS_AT_A_TIME = 64
# Each task reads the looks of all near pairs: few tasks where these are many.
LEAST_HASH_PAIRS, MOST_HASH_PAIRS, TASKS = 20_000, 500_000, 64
# A hash that more pictures share says nothing: those beyond are compared no further.
MOST_SHARING = 100
LOOKED_AT = pa.schema(
    [
        ("row", pa.int64()),
        ("phash", pa.uint64()),
        ("characters", pa.int32()),
        ("look", pa.binary()),
    ]
)


def same_and_near(
    layout: Layout,
    chunks: Sequence[int],
    rows: int,
    distance: int,
    partitions: int,
    gone: np.ndarray,
    concurrency: int,
) -> tuple[Pairs, Pairs]:
    """Rows that go for another with the same picture: of equal hashes, and of near ones.

    Args:
        rows: of all chunks; `partitions` bound the rows that one task compares.
        distance: bits in which hashes may differ.
        gone: sorted numbers of rows that are dropped already.
    """
    shared = _shared_hashes(layout, chunks, partitions, gone, concurrency)
    near = _near_hashes(layout, chunks, rows, distance, partitions, gone, concurrency)
    named = np.unique(np.concatenate([shared, *near]))
    if not len(named):
        nothing = np.empty(0, np.int64)
        return (nothing, nothing), (nothing, nothing)
    files = _gather(layout, chunks, named, gone, concurrency)
    same = _confirm_equal(layout, files, concurrency)
    return same, _confirm_near(layout, files, near, np.sort(same[0]), concurrency)


def _shared_hashes(
    layout: Layout, chunks: Sequence[int], partitions: int, gone: np.ndarray, concurrency: int
) -> np.ndarray:
    """Hashes that several rows have."""

    def work(part: int) -> None:
        index = load_index(layout, chunks, gone, lambda i: in_partition(i.phash, part, partitions))
        hashes, counts = np.unique(index.phash, return_counts=True)
        write_table(numbered(layout, "shared", part), pa.table({"phash": hashes[counts > 1]}))

    run_pass("phash", work, range(partitions), concurrency)
    tables = [read_table(numbered(layout, "shared", part)) for part in range(partitions)]
    return pa.concat_tables(tables)["phash"].to_numpy()


def _near_hashes(
    layout: Layout,
    chunks: Sequence[int],
    rows: int,
    distance: int,
    slices: int,
    gone: np.ndarray,
    concurrency: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of different hashes within the distance, as two parallel uint64 arrays."""
    if not distance:
        return np.empty(0, np.uint64), np.empty(0, np.uint64)
    bands = choose_bands(rows, distance)

    def work(item: list[int]) -> None:
        band, part = item
        index = load_index(
            layout, chunks, gone, lambda i: in_slice(i.phash, bands, band, part, slices)
        )
        hashes = np.unique(index.phash)
        pairs = near_pairs(hashes, hashes.view(np.int64), distance, bands, band)
        one, other = (side.view(np.uint64) for side in pairs)
        path = numbered(layout, "near", band * slices + part)
        write_table(path, pa.table({"one": one, "other": other}))

    items = [[band, part] for band in range(len(bands)) for part in range(slices)]
    run_pass("near", work, items, concurrency)
    table = pa.concat_tables(read_table(numbered(layout, "near", n)) for n in range(len(items)))
    return table["one"].to_numpy(), table["other"].to_numpy()


def _gather(
    layout: Layout,
    chunks: Sequence[int],
    named: np.ndarray,
    gone: np.ndarray,
    concurrency: int,
) -> list[str]:
    """Copy the looks of rows with the hashes `named` (sorted) into files of their own."""
    groups = [chunks[n : n + CHUNKS_AT_A_TIME] for n in range(0, len(chunks), CHUNKS_AT_A_TIME)]
    hashes = storage.join(layout.work, "near-hashes.parquet")
    write_table(hashes, pa.table({"phash": named}))

    def work(number: int) -> None:
        wanted = read_table(hashes)["phash"].to_numpy()
        tables = [LOOKED_AT.empty_table()]
        for chunk in groups[number]:
            index = load_chunk(layout, chunk, gone, lambda i: is_in(i.phash, wanted))
            if len(index.row):
                looks = load_looks(layout, chunk, index.row)
                columns = [index.row, index.phash, index.characters, looks]
                tables.append(pa.table(columns, LOOKED_AT.names).cast(LOOKED_AT))
        write_table(numbered(layout, "looks", number), pa.concat_tables(tables))

    run_pass("looks", work, range(len(groups)), concurrency)
    return [numbered(layout, "looks", number) for number in range(len(groups))]


def _confirm_equal(layout: Layout, files: Sequence[str], concurrency: int) -> Pairs:
    total = sum(count_rows(path) for path in files)
    partitions = max(1, math.ceil(total / LOOKS_AT_A_TIME))

    def work(part: int) -> None:
        table = _chosen(files, lambda t: in_partition(_hashes(t), part, partitions))
        pairs = drop_equal(
            _hashes(table),
            as_looks(table["look"].to_pylist()),
            table["characters"].to_numpy(),
            table["row"].to_numpy(),
        )
        write_pairs(numbered(layout, "equal", part), pairs)

    run_pass("equal", work, range(partitions), concurrency)
    return read_pairs(numbered(layout, "equal", part) for part in range(partitions))


def drop_equal(
    hashes: np.ndarray, looks: np.ndarray, priority: np.ndarray, rows: np.ndarray
) -> Pairs:
    """Rows that go for one of higher priority with an equal hash and the same picture.

    Rows are taken by falling priority, equal ones by rising id, and compared with those of their
    hash that stay, MOST_SHARING of them at most.

    Args:
        hashes, priority, rows: (N,); looks: (N, LOOK_BYTES).

    Returns:
        rows that are dropped, and for each the kept row.
    """
    order = np.lexsort((rows, -priority.astype(np.int64), hashes))
    dropped, kept = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for _ in range(MOST_SHARING):
        first = np.append(True, hashes[order][1:] != hashes[order][:-1])[: len(order)]
        rest = np.flatnonzero(~first)
        if not len(rest):
            break
        leader = order[np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))[rest]]
        order = order[rest]
        same = same_picture(looks, leader, order)
        dropped.append(rows[order[same]])
        kept.append(rows[leader[same]])
        order = order[~same]
    return np.concatenate(dropped), np.concatenate(kept)


def _confirm_near(
    layout: Layout,
    files: Sequence[str],
    near: tuple[np.ndarray, np.ndarray],
    gone: np.ndarray,
    concurrency: int,
) -> Pairs:
    together = min(max(LEAST_HASH_PAIRS, -(-len(near[0]) // TASKS)), MOST_HASH_PAIRS)
    starts = range(0, len(near[0]), together)

    def work(number: int) -> None:
        pairs = [side[starts[number] :][:together] for side in near]
        named = np.unique(np.concatenate(pairs))
        table = _chosen(
            files, lambda t: is_in(_hashes(t), named) & ~is_in(t["row"].to_numpy(), gone)
        )
        one, other = expand(_hashes(table), table["characters"].to_numpy(), *pairs)
        same = same_picture(as_looks(table["look"].to_pylist()), one, other)
        rows = table["row"].to_numpy()
        found = rows[one[same]], rows[other[same]]
        write_pairs(numbered(layout, "alike", number), (np.minimum(*found), np.maximum(*found)))

    run_pass("alike", work, range(len(starts)), concurrency)
    pairs = read_pairs(numbered(layout, "alike", number) for number in range(len(starts)))
    if not len(pairs[0]):
        return pairs
    known = pa.concat_tables(read_table(path, ["row", "characters"]) for path in files)
    return drop_near(pairs, known["characters"].to_numpy(), known["row"].to_numpy())


def expand(
    hashes: np.ndarray, priority: np.ndarray, one: np.ndarray, other: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of hashes as pairs of places in `hashes` (N,): each with each, the MOST_SHARING of
    highest priority of a hash."""
    order = np.lexsort((-priority.astype(np.int64), hashes))
    ordered = hashes[order]
    first, second = (np.searchsorted(ordered, side) for side in (one, other))
    many, more = (
        np.minimum(np.searchsorted(ordered, side, "right") - start, MOST_SHARING)
        for side, start in ((one, first), (other, second))
    )
    count = many * more
    pair = np.repeat(np.arange(len(count)), count)
    within = np.arange(len(pair)) - np.repeat(np.cumsum(count) - count, count)
    return (
        order[first[pair] + within // more[pair]],
        order[second[pair] + within % more[pair]],
    )


def _chosen(files: Sequence[str], chosen: Callable[[pa.Table], np.ndarray]) -> pa.Table:
    """The rows of all files that are chosen; one file is in memory at a time."""
    return pa.concat_tables(
        table.filter(pa.array(chosen(table))) for table in map(read_table, files)
    )


def _hashes(table: pa.Table) -> np.ndarray:
    return table["phash"].to_numpy()


def write_pairs(path: str, pairs: Pairs) -> None:
    write_table(path, pa.table(dict(zip(("row", "kept"), pairs, strict=True))))


def read_pairs(paths: Iterable[str]) -> Pairs:
    """The pairs of several `write_pairs` as one."""
    nothing = pa.table({"row": pa.array([], pa.int64()), "kept": pa.array([], pa.int64())})
    table = pa.concat_tables([nothing, *(read_table(path) for path in paths)])
    return table["row"].to_numpy(), table["kept"].to_numpy()
