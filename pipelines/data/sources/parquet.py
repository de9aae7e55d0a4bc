"""Reads Parquet lists in small batches, the needed columns only.
One of the readers of lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from caft.errors import DataError
from pipelines import storage
from pipelines.data.config import SourceConfig
from pipelines.data.sources import paths
from pipelines.data.sources.columns import Columns, choose_columns
from pipelines.data.sources.raw import to_raw

BATCH_ROWS = 8192
# Column chunks are read piecewise: one may be gigabytes.
BUFFER_BYTES = 2**20


def read_parquet(path: str, source: SourceConfig, extra: Sequence[str]) -> Iterator[pa.Table]:
    """Stream a list as tables of RAW_SCHEMA.

    Raises:
        DataError: corrupt Parquet, a column that is not there or holds something else.
    """
    with open_parquet(path) as file:
        yield from parse_parquet(file, path, source, extra)


def parse_parquet(
    file: pq.ParquetFile,
    path: str,
    source: SourceConfig,
    extra: Sequence[str],
    row_groups: list[int] | None = None,
) -> Iterator[pa.Table]:
    """Tables of RAW_SCHEMA of some row groups, or of all."""
    schema = file.schema_arrow
    columns = choose_columns(source, path, schema.names, extra)
    _require_types(path, schema, columns)
    root = source.image_root or paths.parent(path)
    for batch in file.iter_batches(BATCH_ROWS, row_groups=row_groups, columns=columns.names):
        yield to_raw(pa.Table.from_batches([batch]), columns, root, path)


@contextmanager
def open_parquet(path: str) -> Iterator[pq.ParquetFile]:
    fs, inner = storage.filesystem(path)
    with (
        paths.reading(path, "corrupt Parquet"),
        fs.open_input_file(inner) as stream,
        pq.ParquetFile(stream, buffer_size=BUFFER_BYTES, pre_buffer=False) as file,
    ):
        yield file


def _require_types(path: str, schema: pa.Schema, columns: Columns) -> None:
    urls = schema.field(columns.url).type
    if pa.types.is_nested(urls) or pa.types.is_binary(urls) or pa.types.is_large_binary(urls):
        raise DataError(
            f"{path}: column '{columns.url}' holds {urls}, URLs are due; "
            "name the right one in url_column"
        )
    for name in columns.captions:
        kind = schema.field(name).type
        if name.endswith("_captions") and (
            pa.types.is_string(kind) or pa.types.is_large_string(kind)
        ):
            raise DataError(
                f"{path}: column '{name}' holds strings, a list of strings is due; "
                "a sentence must not be taken for a list of characters"
            )
