"""Working files of the embed stage: what is finished can be told from their names alone.
A piece holds some embedded rows of a chunk; a chunk's receipt says how many rows it has."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from caft.errors import DataError
from pipelines import storage
from pipelines.data.paths import Chunk, Layout
from pipelines.data.write import read_table, write_table

PLACE = pa.field("place", pa.int32())  # of a row in its chunk
NAME = re.compile(r"piece-(\d+)-(\d+)-(\d+)\.parquet")


@dataclass(frozen=True)
class Piece:
    """A file of embedded rows of one chunk.

    Attributes:
        first: the least place of a row in it, which tells pieces of a chunk apart.
    """

    chunk: int
    first: int
    rows: int

    @property
    def name(self) -> str:
        return f"piece-{self.chunk:05d}-{self.first:08d}-{self.rows}.parquet"


def schema_of(width: int, fine: Sequence[int] | None, images: bool) -> pa.Schema:
    """The columns of an embedding.

    Args:
        width: of the whole embedding.
        fine: segments and width of the fine embeddings, where they are kept.
        images: whether images are kept.
    """
    fields = [(name, pa.string()) for name in ("key", "url", "file")]
    fields += [("width", pa.int32()), ("height", pa.int32())]
    fields += [("image", pa.binary())] if images else []
    fields += [("whole", pa.list_(pa.float16(), width))]
    if fine is not None:
        segments, inner = fine
        fields += [("fine", pa.list_(pa.list_(pa.float16(), inner), segments))]
    return pa.schema(fields)


def as_lists(values: np.ndarray) -> pa.Array:
    """Numbers (n, ..., D) as an array of n lists of fixed size."""
    array = pa.array(values.reshape(-1))
    for size in reversed(values.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array


def write_piece(layout: Layout, chunk: int, table: pa.Table) -> Piece:
    """Write embedded rows, which have a column PLACE."""
    piece = Piece(chunk, min(table[PLACE.name].to_pylist()), len(table))
    write_table(storage.join(layout.work, piece.name), table)
    return piece


def pieces_of(layout: Layout) -> dict[int, list[Piece]]:
    """The pieces that are there, by chunk."""
    found: defaultdict[int, list[Piece]] = defaultdict(list)
    for name in storage.list_files(layout.work, ".parquet"):
        if match := NAME.fullmatch(name):
            piece = Piece(*map(int, match.groups()))
            found[piece.chunk].append(piece)
    return found


def finished_chunks(layout: Layout, chunks: Iterable[Chunk]) -> dict[int, dict[str, Any]]:
    """Receipts of the chunks all of whose rows are embedded or rejected."""
    pieces, there = pieces_of(layout), set(storage.list_files(layout.work, ".json"))
    finished = {}
    for chunk in chunks:
        path = layout.receipt("chunk", chunk.number)
        if path.rpartition("/")[2] in there:
            receipt = storage.read_json(path)
            if sum(piece.rows for piece in pieces[chunk.number]) == receipt["kept"]:
                finished[chunk.number] = receipt
    return finished


def places_in(layout: Layout, names: Iterable[str]) -> set[int]:
    """Places of the rows in some pieces of a chunk."""
    places: set[int] = set()
    for name in names:
        table = read_table(storage.join(layout.work, name), [PLACE.name])
        places.update(table[PLACE.name].to_pylist())
    return places


def read_chunk_rows(layout: Layout, chunk: int, pieces: Sequence[Piece]) -> Iterable[pa.Table]:
    """A chunk's embedded rows in the order of its source, some at a time.

    Raises:
        DataError: a row is in two pieces, as it is where a worker died and its source answered
            otherwise the second time; the chunk's pieces are then deleted.
    """
    paths = [storage.join(layout.work, piece.name) for piece in pieces]
    places = [read_table(path, [PLACE.name])[PLACE.name].to_numpy() for path in paths]
    every = np.concatenate([*places, np.zeros(0, np.int64)])
    if len(np.unique(every)) != len(every):
        for path in paths:
            storage.delete_file(path)
        raise DataError(
            f"{layout.output}: chunk {chunk} has rows twice, after a worker died while it read; "
            "run the same command again, which embeds that chunk anew"
        )
    tables: Iterator[pa.Table] = (read_table(path) for path in paths)
    if any(one.max() > other.min() for one, other in pairwise(places)):
        tables = iter([pa.concat_tables(tables)])  # rows that were fetched, as they came
    for table in tables:
        yield table.sort_by(PLACE.name).drop_columns([PLACE.name])
