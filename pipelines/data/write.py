"""Rows to Parquet: the one way in which this stage writes candidates, parts and rejects.
Row groups have one size, and a file appears whole, with its checksum, or not at all."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from caft.errors import StorageError
from pipelines import storage

# Encoded already: a dictionary or the least and greatest value of these would only cost.
OPAQUE_COLUMNS = {"image", "look", "superpixels", "whole", "fine"}
IMAGE = "image"
# Of the images of a row group: a reader holds a few groups, and no column may pass 2 GiB.
MOST_GROUP_BYTES = 2**27
HARDER = {"superpixels": 19}  # raw label maps: a third smaller, and as fast to read


def write_table(path: str, table: pa.Table, row_group_rows: int | None = None) -> None:
    """Write a table as one whole Parquet file."""
    with storage.staged(path) as file:
        pq.write_table(table, file, compression="zstd", row_group_size=row_group_rows)


@storage.retried
def read_table(
    path: str,
    columns: list[str] | None = None,
    filters: list[tuple[str, str, int]] | None = None,
) -> pa.Table:
    """Read one Parquet file, or the rows of it that filters as PyArrow's let through.

    Raises:
        StorageError: it is not there or is damaged.
    """
    fs, inner = storage.filesystem(path)
    try:
        with fs.open_input_file(inner) as file:
            return pq.read_table(file, columns=columns, filters=filters)
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"{path}: cannot be read: {error}") from None


def count_rows(path: str) -> int:
    """Rows of one Parquet file, as its end says; errors as `group_rows`."""
    return sum(group_rows(path))


@storage.retried
def group_rows(path: str) -> list[int]:
    """Rows of each row group of one Parquet file, as its end says.

    Raises:
        StorageError: it is not there or is damaged.
    """
    end = _read_footer(path)
    return [end.row_group(number).num_rows for number in range(end.num_row_groups)]


@storage.retried
def count_values(path: str, column: str) -> int:
    """Values of a column, dotted as Parquet names it, as the file's end says; an empty list counts
    as one.

    Raises:
        StorageError: the file is not there or is damaged.
    """
    footer, count = _read_footer(path), 0
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        columns = (group.column(place) for place in range(group.num_columns))
        count += sum(found.num_values for found in columns if found.path_in_schema == column)
    return count


def _read_footer(path: str) -> pq.FileMetaData:
    fs, inner = storage.filesystem(path)
    try:
        with fs.open_input_file(inner) as file:
            return pq.read_metadata(file)
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"{path}: cannot be read: {error}") from None


def group_ends(sizes: np.ndarray, rows: int) -> list[int]:
    """Where row groups end that hold at most `rows` rows and MOST_GROUP_BYTES, one row at least.

    Args:
        sizes: (N,) bytes of each row's image.
    """
    ends: list[int] = []
    first, held = 0, 0
    for place, size in enumerate(sizes.tolist()):
        if place > first and (place - first == rows or held + size > MOST_GROUP_BYTES):
            ends.append(place)
            first, held = place, 0
        held += size
    return [*ends, len(sizes)] if len(sizes) else []


def image_bytes(table: pa.Table) -> np.ndarray:
    """Bytes of each row's image, (N,) int64; none where the table has no images."""
    if IMAGE not in table.schema.names:
        return np.zeros(len(table), np.int64)
    return pc.fill_null(pc.binary_length(table[IMAGE]), 0).to_numpy().astype(np.int64)


class ParquetSink:
    """A context manager that gathers rows and writes them to `path` in groups, of at most
    `row_group_rows` rows and MOST_GROUP_BYTES of images.

    Attributes:
        entry: rows, bytes and sha256 of the file once the block has ended; None without rows, and
            then there is no file.
    """

    def __init__(self, path: str, schema: pa.Schema, row_group_rows: int) -> None:
        self.entry: dict[str, Any] | None = None
        self._path, self._schema, self._group = path, schema, row_group_rows
        self._rows: list[dict[str, Any]] = []  # added one by one, not a table yet
        self._table = schema.empty_table()
        self._row_bytes = self._written = 0
        self._stack = ExitStack()
        self._file: Path | None = None
        self._writer: pq.ParquetWriter | None = None

    def add(self, row: dict[str, Any]) -> None:
        """Add a row; a column that it lacks is null, a field that is no column is left out."""
        self._rows.append(row)
        self._row_bytes += len(row.get(IMAGE) or b"")
        if len(self._rows) == self._group or self._row_bytes > MOST_GROUP_BYTES:
            self._gather()

    def extend(self, table: pa.Table) -> None:
        """Add rows of this schema, whose images fit into memory twice."""
        table = pa.concat_tables([self._table, table])
        first = 0
        for end in group_ends(image_bytes(table), self._group)[:-1]:
            self._write(table.slice(first, end - first))
            first = end
        self._table = table.slice(first)
        if len(self._table) == self._group:
            self._write(self._table)
            self._table = self._schema.empty_table()

    def __enter__(self) -> ParquetSink:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        with self._stack:  # an error inside it leaves no file
            if error is not None:
                self._stack.__exit__(kind, error, at)
                return
            self._gather()
            self._write(self._table)
            if self._writer is None or self._file is None:
                return
            self._writer.close()
            with open(self._file, "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            size = self._file.stat().st_size
            self.entry = {"rows": self._written, "bytes": size, "sha256": digest}

    def _gather(self) -> None:
        rows, self._rows, self._row_bytes = self._rows, [], 0
        if rows:
            self.extend(pa.Table.from_pylist(rows, self._schema))

    def _write(self, group: pa.Table) -> None:
        if len(group) == 0:
            return
        if self._writer is None:
            scalars = [name for name in self._schema.names if name not in OPAQUE_COLUMNS]
            self._file = self._stack.enter_context(storage.staged(self._path))
            self._writer = pq.ParquetWriter(
                self._file,
                self._schema,
                compression="zstd",
                compression_level=HARDER,
                use_dictionary=scalars,
                write_statistics=scalars,
            )
        self._writer.write_table(group, row_group_size=len(group))
        self._written += len(group)
