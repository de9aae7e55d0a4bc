"""Candidates to the dataset's files: parts of a set size without what is dropped, and rejects.
Rows come in the order of their lists, so equal inputs give equal files whatever happened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from caft.superpixels import encode_superpixels
from caft.transforms import eval_image
from pipelines import storage
from pipelines.data.chunk import CANDIDATE_REJECT_SCHEMA, PLACE
from pipelines.data.config import DataConfig, StoredSuperpixels
from pipelines.data.dataset import DATASET_SCHEMA, REJECT_SCHEMA
from pipelines.data.drops import drops_path
from pipelines.data.layout import ROWS_PER_CHUNK, Chunk, Layout
from pipelines.data.reasons import REASONS
from pipelines.data.write import ParquetSink, read_table

REJECTS_ROW_GROUP = 10_000


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
    source = config.sources[chunks[0].source].name
    drops = read_table(drops_path(layout))
    rejects = []
    name = layout.part(number)
    with ParquetSink(
        storage.join(layout.output, name), DATASET_SCHEMA, config.row_group_rows
    ) as part:
        for chunk in chunks:
            dropped = _drops_of(drops, chunk.number)
            table, gone = _candidates(layout, chunk.number, dropped)
            for start in range(0, len(table), config.row_group_rows):
                rows = table.slice(start, config.row_group_rows)
                part.extend(with_superpixels(rows, config.superpixels))
            entry = _write_rejects(chunk, gone, source, layout)
            rejects += [entry] if entry else []
    entries = {
        "part": part.entry and {"name": name, "source": source, **part.entry},
        "rejects": rejects,
    }
    storage.write_json(layout.receipt("files", number), entries)
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


def _candidates(layout: Layout, chunk: int, dropped: pa.Table) -> tuple[pa.Table, pa.Table]:
    """A chunk's candidates that stay, in order; and of those that go what their rejects say."""
    path = layout.candidate(chunk)
    if not storage.exists(path):  # every row of it was rejected
        return DATASET_SCHEMA.empty_table(), CANDIDATE_REJECT_SCHEMA.empty_table()
    table = read_table(path).sort_by(PLACE.name)
    goes = pc.is_in(table[PLACE.name], value_set=dropped[PLACE.name].combine_chunks())
    gone = table.filter(goes).select(["key", "url", PLACE.name])
    reasons = dropped.sort_by(PLACE.name)["reason"]
    stages = pa.array([REASONS[reason].stage for reason in reasons.to_pylist()], pa.string())
    for column, values in (
        ("stage", stages),
        ("reason", reasons),
        ("detail", dropped.sort_by(PLACE.name)["detail"]),
    ):
        gone = gone.append_column(column, values)
    stays = table.filter(pc.invert(goes)).select(DATASET_SCHEMA.names)
    return stays, gone.select(CANDIDATE_REJECT_SCHEMA.names)


def _write_rejects(
    chunk: Chunk, gone: pa.Table, source: str, layout: Layout
) -> dict[str, Any] | None:
    """The chunk's rejects and its dropped candidates as one file; its entry, None without any."""
    tables = [gone.cast(CANDIDATE_REJECT_SCHEMA)]
    if storage.exists(layout.candidate_rejects(chunk.number)):
        tables.append(read_table(layout.candidate_rejects(chunk.number)))
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


def with_superpixels(rows: pa.Table, config: StoredSuperpixels | None) -> pa.Table:
    """Rows of the dataset with their label maps, if any are asked for."""
    if config is None:
        return rows
    images = [eval_image(data, config.image_size_px) for data in rows["image"].to_pylist()]
    maps = encode_superpixels(torch.stack(images), config.segmenter, config.map_size_px)
    place = rows.schema.get_field_index("superpixels")
    return rows.set_column(place, "superpixels", pa.array(maps, pa.binary()))
