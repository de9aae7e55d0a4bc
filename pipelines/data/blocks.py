"""Tables that many tasks read a part of: blocks in one file, each read alone and packed by itself.
What a join hands from one step to the next; Parquet's footers would outweigh small row groups."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from caft.errors import StorageError
from pipelines import storage

MARK = b"CAFTBLK1"
READERS = 16
OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")


def write_blocks(path: str, tables: Sequence[pa.Table]) -> None:
    """Write one file with a block for each table; empty tables take no room.

    Raises:
        StorageError: as `storage.write_bytes`.
    """
    offsets = np.zeros(len(tables) + 1, "<u8")
    head = len(MARK) + 8 + offsets.nbytes
    with storage.staged(path) as file, open(file, "wb") as stream:
        stream.seek(head)
        offsets[0] = head
        for number, table in enumerate(tables):
            if len(table):
                with pa.ipc.new_stream(stream, table.schema, options=OPTIONS) as writer:
                    writer.write_table(table)
            offsets[number + 1] = stream.tell()
        stream.seek(0)
        stream.write(MARK + np.uint64(len(tables)).astype("<u8").tobytes() + offsets.tobytes())


@storage.retried
def read_block(path: str, number: int, schema: pa.Schema) -> pa.Table:
    """One block, in memory of its own.

    Raises:
        StorageError: the file is not there, is damaged or has no such block.
    """
    fs, inner = storage.filesystem(path)
    try:
        with fs.open_input_file(inner) as stream:
            place = stream.read_at(16, len(MARK) + 8 + 8 * number)
            start, end = np.frombuffer(place, "<u8").tolist()
            if start == end:
                return schema.empty_table()
            block = stream.read_at(end - start, start)
        with pa.ipc.open_stream(block) as reader:
            return reader.read_all()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise StorageError(f"{path}: cannot be read: {error}") from None


def read_blocks(paths: Sequence[str], number: int, schema: pa.Schema) -> pa.Table:
    """The same block of several files, one behind the other, read at the same time."""
    with ThreadPoolExecutor(READERS) as readers:
        tables = readers.map(lambda path: read_block(path, number, schema), paths)
        return pa.concat_tables([schema.empty_table(), *tables])
