"""Which candidates the dataset leaves out once all are known: unlike their captions, or duplicates.
Reads the chunks' small indices alone, in partitions that bound the memory of each task."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipelines import storage
from pipelines.data.config import DataConfig
from pipelines.data.dedup.index import gathered_indices, is_in, load_index, numbered, run_pass
from pipelines.data.dedup.pairs import Pairs, exact_duplicates, in_partition, in_turn
from pipelines.data.dedup.samples import write_samples
from pipelines.data.dedup.similar import read_pairs, same_and_near, write_pairs
from pipelines.data.paths import Layout
from pipelines.data.write import write_table

# `row`: a candidate's number in the whole set.
DROP_SCHEMA = pa.schema([("row", pa.int64()), ("reason", pa.string()), ("detail", pa.string())])
# What is the same, in the order in which it is asked, and why a row then goes.
REASONS = {
    "key": "duplicate_url",
    "sha256": "duplicate_image",
    "equal": "near_duplicate",
    "near": "near_duplicate",
}


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
    rows = gathered_indices(layout, chunks).make("gather_indices", concurrency)
    settings = config.duplicates
    partitions = max(1, math.ceil(rows / settings.partition_rows))
    found: dict[str, Pairs] = {}
    for name in ["key", "sha256"] if settings.same_bytes else ["key"]:
        gone = _rows_of(found, refused)

        def exact(part: int, name: str = name, gone: np.ndarray = gone) -> None:
            index = load_index(
                layout, chunks, gone, lambda i: in_partition(getattr(i, name), part, partitions)
            )
            pairs = exact_duplicates(getattr(index, name), index.characters, index.row)
            write_pairs(numbered(layout, name, part), pairs)

        run_pass(name, exact, range(partitions), concurrency)
        found[name] = read_pairs(numbered(layout, name, part) for part in range(partitions))
    if settings.near_distance is not None:
        gone = _rows_of(found, refused)
        found["equal"], found["near"] = same_and_near(
            layout, chunks, rows, settings.near_distance, partitions, gone, concurrency
        )
    _write_drops(layout, chunks, found, refused)


def _write_drops(
    layout: Layout, chunks: Sequence[int], found: dict[str, Pairs], refused: pa.Table
) -> None:
    why = [np.full(len(pairs[0]), list(found).index(name)) for name, pairs in found.items()]
    pairs: Pairs = (np.empty(0, np.int64), np.empty(0, np.int64))
    for later in found.values():
        pairs = in_turn(pairs, later)
    kept = load_index(
        layout, chunks, np.empty(0, np.int64), lambda i: is_in(i.row, np.unique(pairs[1]))
    )
    by_row = np.argsort(kept.row)
    place = by_row[np.searchsorted(kept.row, pairs[1], sorter=by_row)]
    names = [REASONS[name] for name in found]
    reasons = [names[n] for n in np.concatenate(why)] if why else []
    near = np.array(reasons, object) == REASONS["near"]
    write_samples(layout, (pairs[0][near], pairs[1][near]))
    table = pa.table(
        {
            "row": pairs[0],
            "reason": reasons,
            "detail": [f"duplicates key {key.tobytes().hex()}" for key in kept.key[place]],
        },
        schema=DROP_SCHEMA,
    ).sort_by("row")
    write_table(drops_path(layout), pa.concat_tables([refused, table]).sort_by("row"))


def _rows_of(found: dict[str, Pairs], refused: pa.Table) -> np.ndarray:
    return np.sort(np.concatenate([refused["row"].to_numpy(), *(p[0] for p in found.values())]))
