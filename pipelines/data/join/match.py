"""Joins one partition's captions and images, and brings what was found to the images' chunks.
The join's last two steps; nothing is in memory but one partition, then one group of chunks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from caft.errors import DataError
from pipelines import storage
from pipelines.data.blocks import read_blocks, write_blocks
from pipelines.data.config import SourceConfig
from pipelines.data.join.sides import CAPTION_SIDE, IMAGE_SIDE, planned_values
from pipelines.data.join.values import joined_list, keys_of, no_row, words
from pipelines.data.paths import ROWS_PER_CHUNK, Chunk, Layout
from pipelines.data.planned import write_planned
from pipelines.data.sources import RAW_SCHEMA
from pipelines.data.write import read_table, write_table

CAPTIONS = RAW_SCHEMA.field("captions").type
JOINED = pa.schema([("row", pa.int64()), ("captions", CAPTIONS)])
JOINED_ROW_GROUP = 2_000
MOST_ROWS_OF_AN_IMAGE = 1_000  # of captions; more are a column that holds something else


def match(
    source: SourceConfig,
    runs: Sequence[str],
    images: Sequence[str],
    number: int,
    firsts: Sequence[int],
    folder: str,
) -> dict[str, int]:
    """Join one partition; write the captions of its images with a block for each group of chunks.

    Args:
        runs, images: files with the partition's captions, and with its images' keys.
        firsts: the first row number of each group.

    Returns:
        `joined`, rows of captions that an image has; `without_image`, the others; `images`.

    Raises:
        DataError: one image has more caption rows than any image has.
    """
    receipt = storage.join(folder, f"joined-{number:05d}.json")
    if storage.exists(receipt):
        return storage.read_json(receipt)
    captions = read_blocks(runs, number, CAPTION_SIDE)
    wanted = read_blocks(images, number, IMAGE_SIDE)
    keys = words(keys_of(captions))
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    mine, rows = words(keys_of(wanted)), wanted["row"].to_numpy()
    low, high = np.searchsorted(keys, mine), np.searchsorted(keys, mine, "right")
    counts = high - low
    if len(counts) and counts.max() > MOST_ROWS_OF_AN_IMAGE:
        joined = joined_list(source)
        raise DataError(
            f"{joined.path}: {counts.max():,} rows have the same {joined.on} as one image; name "
            "the column that tells images apart in captions_from.column and image_field"
        )
    by_row = np.argsort(rows, kind="stable")
    low, counts, rows = low[by_row], counts[by_row], rows[by_row]
    starts = np.cumsum(counts) - counts
    found = np.repeat(low - starts, counts) + np.arange(counts.sum())
    place = order[found]
    taken = captions["captions"].combine_chunks().take(pa.array(place))
    out = pa.table([np.repeat(rows, counts), taken], schema=JOINED)
    edges = np.searchsorted(out["row"].to_numpy(), [*firsts, np.iinfo(np.int64).max])
    blocks = [out.slice(a, b - a) for a, b in itertools.pairwise(edges)]
    write_blocks(storage.join(folder, f"joined-{number:05d}.blocks"), blocks)
    used = len(np.unique(place))
    result = {
        "joined": used,
        "without_image": len(captions) - used,
        "images": int((counts > 0).sum()),
    }
    storage.write_json(receipt, result)
    return result


def attach(
    chunks: Sequence[Chunk],
    source: SourceConfig,
    layout: Layout,
    folder: str,
    number: int,
    partitions: int,
) -> None:
    """Bring the captions of a group of chunks to it: into the plan of a list, and into a file of
    their own, `captions_path`, for containers."""
    path = captions_path(layout, chunks[0])
    paths = [storage.join(folder, f"joined-{n:05d}.blocks") for n in range(partitions)]
    table = read_blocks(paths, number, JOINED)
    table = table.combine_chunks().take(
        pa.array(np.argsort(table["row"].to_numpy(), kind="stable"))
    )
    write_table(path, table, JOINED_ROW_GROUP)
    for chunk in chunks:
        if not chunk.container:
            _attach_to_list(table, chunk, source, layout)


def _attach_to_list(table: pa.Table, chunk: Chunk, source: SourceConfig, layout: Layout) -> None:
    planned = read_table(storage.join(layout.output, chunk.path))
    captions, has = _column_of(table, chunk.number, len(planned))
    reasons, details = planned["reason"].to_pylist(), planned["detail"].to_pylist()
    missing = [n for n in np.flatnonzero(~has).tolist() if reasons[n] in (None, "no_caption")]
    values = planned_values(chunk, source, layout) if missing else []
    for place in missing:
        reasons[place], details[place] = no_row(values[place], source).values()
    for place in np.flatnonzero(has).tolist():
        if reasons[place] == "no_caption":  # it had none of its own
            reasons[place], details[place] = None, ""
    columns = {
        "captions": captions,
        "reason": pa.array(reasons, pa.string()),
        "detail": pa.array(details, pa.string()),
    }
    for name, column in columns.items():
        planned = planned.set_column(planned.schema.get_field_index(name), name, column)
    write_planned(layout, chunk.path, planned)


def _column_of(table: pa.Table, chunk: int, rows: int) -> tuple[pa.Array, np.ndarray]:
    """The captions of each row of a chunk, (rows,), and which rows have some, bool (rows,)."""
    mine = _slice_of(table, chunk)
    places = mine["row"].to_numpy() - chunk * ROWS_PER_CHUNK
    single = pa.concat_arrays([*mine["captions"].chunks, pa.array([[]], CAPTIONS)])
    index = np.full(rows, len(mine))
    index[places] = np.arange(len(mine))
    named, times = np.unique(places, return_counts=True)
    repeated = named[times > 1]
    if len(repeated):  # few rows have captions of several
        merged = captions_of(mine.filter(pa.array(np.isin(places, repeated))), chunk)
        index[repeated] = len(single) + np.arange(len(repeated))
        cells = [merged[place] for place in repeated.tolist()]
        single = pa.concat_arrays([single, pa.array(cells, CAPTIONS)])
    has = np.zeros(rows, bool)
    has[places] = True
    return single.take(pa.array(index)), has


def captions_path(layout: Layout, first: Chunk) -> str:
    """Where the captions of a group of chunks are, by the first of them."""
    return storage.join(layout.plan, f"joined-{first.number:05d}.parquet")


def joined_captions(layout: Layout, chunk: Chunk) -> dict[int, list[dict[str, Any]]]:
    """Place in a container's chunk -> the captions that are joined to its row."""
    assert chunk.captions is not None
    first = chunk.number * ROWS_PER_CHUNK
    bounds = [("row", ">=", first), ("row", "<", first + ROWS_PER_CHUNK)]
    path = storage.join(layout.output, chunk.captions)
    return captions_of(read_table(path, filters=bounds), chunk.number)


def captions_of(table: pa.Table, chunk: int) -> dict[int, list[dict[str, Any]]]:
    """Place -> captions of a chunk's rows in a sorted table; several rows' are merged, each
    caption once."""
    first, mine = chunk * ROWS_PER_CHUNK, _slice_of(table, chunk)
    captions: dict[int, list[dict[str, Any]]] = {}
    for row, cells in zip(mine["row"].to_pylist(), mine["captions"].to_pylist(), strict=True):
        have = captions.setdefault(row - first, [])
        have += [cell for cell in cells if cell not in have]
    return captions


def _slice_of(table: pa.Table, chunk: int) -> pa.Table:
    first = chunk * ROWS_PER_CHUNK
    low, high = np.searchsorted(table["row"].to_numpy(), [first, first + ROWS_PER_CHUNK])
    return table.slice(low, high - low)
