"""Which candidates the dataset leaves out once all are known: unlike their captions, or duplicates.
Reads the chunks' small indices alone, in partitions that bound the memory of each task."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines import storage
from pipelines.data.config import DataConfig
from pipelines.data.dedup.pairs import (
    Pairs,
    choose_bands,
    drop_near,
    exact_duplicates,
    in_partition,
    in_slice,
    in_turn,
    near_pairs,
)
from pipelines.data.gathered import Gathered
from pipelines.data.paths import ROWS_PER_CHUNK, Layout
from pipelines.data.write import read_table, write_table
from pipelines.workers import run_tasks

# `row`: a candidate's number in the whole set.
DROP_SCHEMA = pa.schema([("row", pa.int64()), ("reason", pa.string()), ("detail", pa.string())])
# What is the same, in the order in which it is asked, and why a row then goes.
EXACT_PASSES = {
    "key": "duplicate_url",
    "sha256": "duplicate_image",
    "phash": "near_duplicate",
}
NEAR_PASS = "near"
INDEX_SCHEMA = pa.schema(
    [
        ("place", pa.int32()),
        ("key", pa.binary(16)),
        ("sha256", pa.binary(16)),
        ("phash", pa.uint64()),
        ("characters", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Index:
    """What is known of n candidates, as arrays (n,)."""

    row: np.ndarray  # int64
    key: np.ndarray  # V16
    sha256: np.ndarray  # V16
    phash: np.ndarray  # uint64
    characters: np.ndarray  # int64, of all captions together

    def where(self, chosen: np.ndarray) -> Index:
        return Index(*(getattr(self, field.name)[chosen] for field in fields(self)))


def drops_path(layout: Layout) -> str:
    return storage.join(layout.work, "drops.parquet")


def find_drops(
    config: DataConfig,
    layout: Layout,
    chunks: Sequence[int],
    known: Sequence[int],
    refused: pa.Table,
    concurrency: int,
) -> None:
    """Write `drops_path`: every candidate that goes, with its reason and what it duplicates.

    Args:
        chunks: numbers of the chunks that have candidates.
        known: numbers of the indices of rows that the dataset holds already.
        refused: rows (`DROP_SCHEMA`) that go for another reason, and so duplicate nothing.
    """
    if not chunks:
        write_table(drops_path(layout), DROP_SCHEMA.empty_table())
        return
    chunks = [*chunks, *known]
    rows = _gathered(layout, chunks).make("gather_indices", concurrency)
    settings = config.duplicates
    partitions = max(1, math.ceil(rows / settings.partition_rows))
    passes = ["key"]
    passes += ["sha256"] if settings.same_bytes else []
    passes += ["phash"] if settings.near_distance is not None else []
    found: dict[str, Pairs] = {}
    for name in passes:
        gone = _rows_of(found, refused)

        def exact(part: int, name: str = name, gone: np.ndarray = gone) -> None:
            index = load_index(
                layout, chunks, gone, lambda i: in_partition(getattr(i, name), part, partitions)
            )
            pairs = exact_duplicates(getattr(index, name), index.characters, index.row)
            _write_pairs(layout, name, part, pairs)

        _run(name, exact, range(partitions), concurrency)
        found[name] = _read_pairs(layout, name, range(partitions))
    if settings.near_distance:
        gone = _rows_of(found, refused)
        found[NEAR_PASS] = _find_near(
            layout, chunks, rows, settings.near_distance, partitions, gone, concurrency
        )
    _write_drops(layout, chunks, found, refused)


def load_index(
    layout: Layout,
    chunks: Sequence[int],
    without: np.ndarray,
    chosen: Callable[[Index], np.ndarray] | None = None,
) -> Index:
    """Candidates of all chunks but those in `without` (sorted row numbers), of which `chosen`
    keeps some; few gathered files are in memory at a time."""
    parts = [_as_index(INDEX_SCHEMA.empty_table(), 0)]
    for place, table in _gathered(layout, chunks).tables():
        index = _as_index(table, chunks[place])
        index = index.where(~_is_in(index.row, without))
        parts.append(index if chosen is None else index.where(chosen(index)))
    columns = ([getattr(part, field.name) for part in parts] for field in fields(Index))
    return Index(*(np.concatenate(column) for column in columns))


def _gathered(layout: Layout, chunks: Sequence[int]) -> Gathered:
    files = tuple(layout.index(number) for number in chunks)
    return Gathered(files, storage.join(layout.work, "indices"), tuple(INDEX_SCHEMA.names))


def _find_near(
    layout: Layout,
    chunks: Sequence[int],
    rows: int,
    distance: int,
    slices: int,
    gone: np.ndarray,
    concurrency: int,
) -> Pairs:
    """Rows near another one, among those that `gone` leaves: one for each perceptual hash."""
    bands = choose_bands(rows, distance)

    def near(item: list[int]) -> None:
        band, part = item
        index = load_index(
            layout, chunks, gone, lambda i: in_slice(i.phash, bands, band, part, slices)
        )
        pairs = near_pairs(index.phash, index.row, distance, bands, band)
        _write_pairs(layout, NEAR_PASS, band * slices + part, pairs)

    items = [[band, part] for band in range(len(bands)) for part in range(slices)]
    _run(NEAR_PASS, near, items, concurrency)
    pairs = _read_pairs(layout, NEAR_PASS, range(len(items)))
    if not len(pairs[0]):
        return pairs
    named = np.unique(np.concatenate(pairs))
    index = load_index(layout, chunks, gone, lambda i: _is_in(i.row, named))
    return drop_near(pairs, index.characters, index.row)


def _write_drops(
    layout: Layout, chunks: Sequence[int], found: dict[str, Pairs], refused: pa.Table
) -> None:
    reasons = EXACT_PASSES | {NEAR_PASS: EXACT_PASSES["phash"]}
    why = [np.full(len(pairs[0]), list(found).index(name)) for name, pairs in found.items()]
    pairs: Pairs = (np.empty(0, np.int64), np.empty(0, np.int64))
    for later in found.values():
        pairs = in_turn(pairs, later)
    kept = load_index(
        layout, chunks, np.empty(0, np.int64), lambda i: _is_in(i.row, np.unique(pairs[1]))
    )
    by_row = np.argsort(kept.row)
    place = by_row[np.searchsorted(kept.row, pairs[1], sorter=by_row)]
    names = [reasons[name] for name in found]
    table = pa.table(
        {
            "row": pairs[0],
            "reason": [names[n] for n in np.concatenate(why)] if why else [],
            "detail": [f"duplicates key {key.tobytes().hex()}" for key in kept.key[place]],
        },
        schema=DROP_SCHEMA,
    ).sort_by("row")
    write_table(drops_path(layout), pa.concat_tables([refused, table]).sort_by("row"))


def _as_index(table: pa.Table, chunk: int) -> Index:
    def digests(name: str) -> np.ndarray:
        column = table[name].combine_chunks().cast(pa.binary(16))
        return np.frombuffer(b"".join(column.to_pylist()), dtype="V16")

    return Index(
        table["place"].to_numpy().astype(np.int64) + chunk * ROWS_PER_CHUNK,
        digests("key"),
        digests("sha256"),
        table["phash"].to_numpy(),
        table["characters"].to_numpy().astype(np.int64),
    )


def _is_in(rows: np.ndarray, some: np.ndarray) -> np.ndarray:
    """Which of `rows` (n,) are among `some`, which is sorted; bool (n,)."""
    if not len(some):
        return np.zeros(len(rows), bool)
    place = np.minimum(np.searchsorted(some, rows), len(some) - 1)
    return some[place] == rows


def _rows_of(found: dict[str, Pairs], refused: pa.Table) -> np.ndarray:
    return np.sort(np.concatenate([refused["row"].to_numpy(), *(p[0] for p in found.values())]))


def _run(name: str, function: Callable[[Any], None], items: Iterable[Any], tasks: int) -> None:
    for _ in run_tasks(f"duplicates_{name}", function, items, tasks):
        pass


def _pairs_path(layout: Layout, name: str, part: int) -> str:
    return storage.join(layout.work, f"pairs-{name}-{part:05d}.parquet")


def _write_pairs(layout: Layout, name: str, part: int, pairs: Pairs) -> None:
    table = pa.table(dict(zip(("row", "kept"), pairs, strict=True)))
    write_table(_pairs_path(layout, name, part), table)


def _read_pairs(layout: Layout, name: str, parts: range) -> Pairs:
    table = pa.concat_tables(read_table(_pairs_path(layout, name, part)) for part in parts)
    return table["row"].to_numpy(), table["kept"].to_numpy()
