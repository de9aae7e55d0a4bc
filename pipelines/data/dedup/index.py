"""What finding duplicates knows of each candidate: the chunks' small indices, and how to read them.
Written by the chunks; the passes of duplicates.py and similar.py read the columns they need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines import storage
from pipelines.data.gathered import Gathered
from pipelines.data.paths import ROWS_PER_CHUNK, Layout
from pipelines.data.write import read_table
from pipelines.workers import run_tasks

INDEX_SCHEMA = pa.schema(
    [
        ("place", pa.int32()),
        ("key", pa.binary(16)),
        ("sha256", pa.binary(16)),
        ("phash", pa.uint64()),
        ("characters", pa.int32()),
        ("look", pa.binary()),
    ]
)
LOOK = "look"  # more than all else of a row, read for few rows alone


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


def load_index(
    layout: Layout,
    chunks: Sequence[int],
    without: np.ndarray,
    chosen: Callable[[Index], np.ndarray] | None = None,
) -> Index:
    """Candidates of all chunks, whose indices are gathered, but those in `without` (sorted row
    numbers), of which `chosen` keeps some; few gathered files are in memory at a time."""
    parts = [_as_index(INDEX_SCHEMA.empty_table(), 0)]
    for place, table in gathered_indices(layout, chunks).tables():
        parts.append(_chosen(_as_index(table, chunks[place]), without, chosen))
    joined = ([getattr(part, field.name) for part in parts] for field in fields(Index))
    return Index(*(np.concatenate(column) for column in joined))


def load_chunk(
    layout: Layout, chunk: int, without: np.ndarray, chosen: Callable[[Index], np.ndarray]
) -> Index:
    """Candidates of one chunk, as `load_index` gives those of all."""
    table = read_table(layout.index(chunk), list(gathered_indices(layout, [chunk]).columns))
    return _chosen(_as_index(table, chunk), without, chosen)


def gathered_indices(layout: Layout, chunks: Sequence[int]) -> Gathered:
    """The chunks' indices as few files, without their looks."""
    files = tuple(layout.index(number) for number in chunks)
    columns = tuple(name for name in INDEX_SCHEMA.names if name != LOOK)
    return Gathered(files, storage.join(layout.work, "indices"), columns)


def load_looks(layout: Layout, chunk: int, rows: np.ndarray) -> pa.ChunkedArray:
    """Stored looks of some rows of a chunk, in their order."""
    table = read_table(layout.index(chunk), ["place", LOOK])
    stored = table["place"].to_numpy()
    order = np.argsort(stored)
    places = order[np.searchsorted(stored, rows - chunk * ROWS_PER_CHUNK, sorter=order)]
    return table[LOOK].take(pa.array(places))


def is_in(values: np.ndarray, some: np.ndarray) -> np.ndarray:
    """Which of `values` (n,) are among `some`, which is sorted; bool (n,)."""
    if not len(some):
        return np.zeros(len(values), bool)
    place = np.minimum(np.searchsorted(some, values), len(some) - 1)
    return some[place] == values


def run_pass(name: str, function: Callable[[Any], None], items: Iterable[Any], tasks: int) -> None:
    """Call `function` with each item in tasks of the cluster; what it finds, it writes."""
    for _ in run_tasks(f"duplicates_{name}", function, items, tasks):
        pass


def numbered(layout: Layout, name: str, part: int) -> str:
    """The file for what part `part` of a pass finds."""
    return storage.join(layout.work, f"pairs-{name}-{part:05d}.parquet")


def _chosen(
    index: Index, without: np.ndarray, chosen: Callable[[Index], np.ndarray] | None
) -> Index:
    index = index.where(~is_in(index.row, without))
    return index if chosen is None else index.where(chosen(index))


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
