"""Writes the rows of a planned chunk, with the small index that finding equal URLs reads.
The plan writes them from a list, a join writes them again with the captions that it found."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import storage
from pipelines.data.paths import Layout
from pipelines.data.sources.raw import caption_characters, damaged_rows, text_keys
from pipelines.data.write import write_table

INDEX_SCHEMA = pa.schema([("key", pa.binary(16)), ("characters", pa.int32())])


def write_planned(layout: Layout, path: str, table: pa.Table) -> None:
    """Write rows of RAW_SCHEMA to a path below the output, and their index beside them."""
    keys = text_keys(table["url"].to_pylist())
    write_table(storage.join(layout.output, path), table)
    name = path.rpartition("/")[2]
    write_table(storage.join(layout.plan, f"index-{name}"), _index(table, keys))


def _index(table: pa.Table, keys: np.ndarray) -> pa.Table:
    """Key and length of captions of each row; no key where a row is rejected already."""
    column = pa.FixedSizeBinaryArray.from_buffers(
        INDEX_SCHEMA.field("key").type, len(keys), [None, pa.py_buffer(keys.tobytes())]
    )
    rejected = pc.or_(pc.is_valid(table["reason"]), damaged_rows(table)).combine_chunks()
    column = pc.if_else(rejected, pa.scalar(None, column.type), column)
    return pa.table([column, caption_characters(table)], schema=INDEX_SCHEMA)
