"""Rows to Parquet: the one way in which this stage writes candidates, parts and rejects.
Row groups have one size, and a file appears whole, with its checksum, or not at all."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from caft.errors import StorageError
from pipelines import storage

# Encoded already: a dictionary or the least and greatest value of these would only cost.
OPAQUE_COLUMNS = {"image", "look", "superpixels"}
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


@storage.retried
def count_rows(path: str) -> int:
    """Rows of one Parquet file, as its end says.

    Raises:
        StorageError: it is not there or is damaged.
    """
    fs, inner = storage.filesystem(path)
    try:
        with fs.open_input_file(inner) as file:
            return pq.read_metadata(file).num_rows
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"{path}: cannot be read: {error}") from None


class ParquetSink:
    """A context manager that gathers rows and writes them to `path` in groups.

    Attributes:
        entry: rows, bytes and sha256 of the file once the block has ended; None without rows, and
            then there is no file.
    """

    def __init__(self, path: str, schema: pa.Schema, row_group_rows: int) -> None:
        self.entry: dict[str, Any] | None = None
        self._path, self._schema, self._group = path, schema, row_group_rows
        self._rows: list[dict[str, Any]] = []  # added one by one, not a table yet
        self._tables: list[pa.Table] = []
        self._waiting = self._written = 0
        self._stack = ExitStack()
        self._file: Path | None = None
        self._writer: pq.ParquetWriter | None = None

    def add(self, row: dict[str, Any]) -> None:
        """Add a row; a column that it lacks is null, a field that is no column is left out."""
        self._rows.append(row)
        if len(self._rows) == self._group:
            self._gather()

    def extend(self, table: pa.Table) -> None:
        """Add rows of this schema."""
        self._tables.append(table)
        self._waiting += len(table)
        if self._waiting >= self._group:
            self._write(self._waiting - self._waiting % self._group)

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
            self._write(self._waiting)
            if self._writer is None or self._file is None:
                return
            self._writer.close()
            with open(self._file, "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            size = self._file.stat().st_size
            self.entry = {"rows": self._written, "bytes": size, "sha256": digest}

    def _gather(self) -> None:
        rows, self._rows = self._rows, []
        if rows:
            self.extend(pa.Table.from_pylist(rows, self._schema))

    def _write(self, count: int) -> None:
        if count == 0:
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
        table = pa.concat_tables(self._tables)
        self._writer.write_table(table.slice(0, count), row_group_size=self._group)
        self._tables, self._waiting = [table.slice(count)], self._waiting - count
        self._written += count
