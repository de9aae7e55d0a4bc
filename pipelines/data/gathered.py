"""Small files of many chunks as few larger ones, which passes over all rows then read.
Each small file is read once, many at a time: on S3 it is requests that cost, not bytes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines import storage
from pipelines.data.write import count_rows, read_table, write_table
from pipelines.workers import run_tasks

READERS = 16
READ_AHEAD = 4  # larger files in memory at a time
FILE = "file"  # the column that says which of the small files a row is from


@dataclass(frozen=True)
class Gathered:
    """Some columns of Parquet files, which are gathered below a path that is `prefix` and a number.

    A run that is resumed takes the gathered files that are there, so that `files` must then be
    the same.
    """

    files: tuple[str, ...]
    prefix: str
    columns: tuple[str, ...]
    together: int = 128  # small files in one larger one

    def make(self, label: str, concurrency: int) -> int:
        """Write the larger files that are not there; returns the rows of all."""
        starts = range(0, len(self.files), self.together)
        if len(starts) <= 1:  # not worth a task
            return sum(map(self._gather, starts))
        return sum(rows for _, rows in run_tasks(label, self._gather, starts, concurrency))

    def tables(self) -> Iterator[tuple[int, pa.Table]]:
        """(place among `files`, its rows) of each file in order."""
        starts = list(range(0, len(self.files), self.together))
        with ThreadPoolExecutor(READ_AHEAD) as readers:
            for n in range(0, len(starts), READ_AHEAD):
                some = starts[n : n + READ_AHEAD]
                for start, table in zip(some, readers.map(self._read, some), strict=True):
                    last = min(self.together, len(self.files) - start)
                    edges = np.searchsorted(table[FILE].to_numpy(), np.arange(last + 1))
                    for place in range(last):
                        low, high = edges[place], edges[place + 1]
                        yield start + place, table.slice(low, high - low).drop_columns([FILE])

    def _gather(self, start: int) -> int:
        path = self._path(start)
        if storage.exists(path):
            return count_rows(path)
        files = self.files[start : start + self.together]
        with ThreadPoolExecutor(READERS) as readers:
            tables = list(readers.map(lambda file: read_table(file, list(self.columns)), files))
        joined = pa.concat_tables(tables)
        numbers = np.repeat(np.arange(len(files), dtype=np.int32), list(map(len, tables)))
        write_table(path, joined.append_column(FILE, pa.array(numbers)))
        return len(joined)

    def _read(self, start: int) -> pa.Table:
        return read_table(self._path(start))

    def _path(self, start: int) -> str:
        return f"{self.prefix}-{start // self.together:05d}.parquet"
