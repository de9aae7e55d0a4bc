"""One window of the epoch plan as arrays: row groups read, images decoded, captions tokenised.
What each decoding task of Ray Data runs; whatever is drawn at random depends on epoch and key."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from caft.caption_sampling import sample_parts
from caft.config import ModelConfig
from caft.errors import DataError
from caft.superpixels import stored_labels
from caft.tokenizer import load_tokenizer
from caft.transforms import train_image
from pipelines import storage
from pipelines.failures import located, one_voice
from pipelines.superpixel_columns import pack_superpixels
from pipelines.train.cache import RowGroupCache
from pipelines.train.config import IngestConfig
from pipelines.train.plan import Piece, Subset

COLUMNS = ["key", "image", "captions", "superpixels", "split"]
MAY_BE_MISSING = "superpixels"  # the model then computes them all
TABLE = "table"  # of a window that was read before it is decoded
MOST_FOOTERS = 1024  # in a process


@dataclass(frozen=True)
class Loader:
    """Turns windows into arrays. Travels to Ray Data tasks, so it holds settings alone."""

    dataset: str
    split: str
    model: ModelConfig
    ingest: IngestConfig
    subset: Subset | None = None
    fingerprint: str = ""  # of the dataset, for what is kept of it on this node

    @property
    def extra_parts(self) -> int:
        """Sub-captions beside the chunks: the part losses alone read them."""
        return self.ingest.extra_parts if self.model.losses.parts else 0

    @one_voice("decoding rows")
    def __call__(self, row: dict[str, Any]) -> dict[str, np.ndarray]:
        """Decode one window (as `asdict` spells it) to arrays over its n rows, in the order in
        which steps consume them."""
        cv2.setNumThreads(1)  # one task is one core; Ray runs several
        pieces = [Piece(**piece) for piece in row["pieces"]]
        files = ", ".join(dict.fromkeys(piece.file for piece in pieces))
        with located(f"{self.dataset}: {files}"):
            return self._load(row, pieces)

    def _load(self, row: dict[str, Any], pieces: Sequence[Piece]) -> dict[str, np.ndarray]:
        if TABLE in row:
            rows = rows_of(pa.ipc.open_stream(row[TABLE]).read_all())
        else:
            rows = rows_of(self._read(pieces))
        order = np.random.default_rng(row["seed"]).permutation(len(rows.keys))
        size = self.model.image.image_size_px
        images = np.empty((len(order), 3, size, size), dtype=np.uint8)
        stored, parts = [], []
        for place, n in enumerate(order):
            rng = sample_generator(row["epoch"], rows.keys[n])
            with located(f"key {rows.keys[n]}"):
                image, labels = self._image(rows, n, rng)
                text = sample_parts(rows.captions[n], rng, self.model.text.chunks, self.extra_parts)
            images[place] = image
            stored.append(labels)
            parts += text
        return {
            "keys": np.array([rows.keys[n] for n in order], dtype=object),
            "images": images,
            "superpixels": pack_superpixels(
                torch.from_numpy(images), stored, self.model.image.superpixels
            ),
            "tokens": self.tokenise(parts),
        }

    @one_voice("reading rows")
    def read(self, row: dict[str, Any]) -> dict[str, Any]:
        """The window with its rows in it, for tasks that read while others decode."""
        pieces = [Piece(**piece) for piece in row["pieces"]]
        with located(self.dataset):
            table = self._read(pieces).combine_chunks()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return row | {TABLE: sink.getvalue().to_pybytes()}

    def _read(self, pieces: Sequence[Piece]) -> pa.Table:
        cache = None
        if self.ingest.cache is not None:
            cache = RowGroupCache(self.ingest.cache, f"{self.dataset} {self.fingerprint}")
        return read_table(self.dataset, pieces, self.split, self.subset, cache, self.fingerprint)

    def tokenise(self, parts: list[str]) -> np.ndarray:
        """Ids (n, K, context length), int32, of the K sub-captions of n rows end to end."""
        text = self.model.text
        tokens = load_tokenizer(text.tokenizer)(parts, text.context_length).numpy()
        padded = np.zeros((len(parts), text.context_length), dtype=np.int32)
        padded[:, : tokens.shape[1]] = tokens
        return padded.reshape(-1, text.chunks + self.extra_parts, text.context_length)

    def _image(self, rows: Rows, n: int, rng: np.random.Generator) -> tuple[Tensor, Tensor | None]:
        try:
            return train_image(
                rows.images[n],
                self.model.image.image_size_px,
                self.ingest.crop.min_scale,
                rng,
                stored_labels(rows.superpixels[n], self.model.image),
                self.ingest.flip_probability,
                self.ingest.crop.ratio,
            )
        except DataError as error:
            raise DataError(f"{self.dataset}: key {rows.keys[n]}: {error}") from None


def sample_generator(epoch: int, key: str) -> np.random.Generator:
    """What a sample draws its crop and captions from, whoever decodes it."""
    digest = hashlib.sha256(f"{epoch}/{key}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


@dataclass(frozen=True)
class Rows:
    """Columns of n rows as plain lists."""

    keys: list[str]
    images: list[bytes]
    captions: list[list[dict[str, Any]]]
    superpixels: list[bytes | None]


def read_rows(
    dataset: str, pieces: Sequence[Piece], split: str, subset: Subset | None = None
) -> Rows:
    """The rows of `pieces`, end to end; nothing but their row groups is read."""
    return rows_of(read_table(dataset, pieces, split, subset))


def read_table(
    dataset: str,
    pieces: Sequence[Piece],
    split: str,
    subset: Subset | None = None,
    cache: RowGroupCache | None = None,
    fingerprint: str = "",
) -> pa.Table:
    """As `read_rows`, a table of `COLUMNS`; row groups come from `cache` where it has them."""
    tables = []
    for piece in pieces:

        def read(piece: Piece = piece) -> pa.Table:
            return _read_group(dataset, piece, fingerprint)

        name = f"{piece.file} {piece.row_group}"
        table = read() if cache is None else cache.table(name, read)
        table = table.filter(pc.equal(table["split"], split))
        if subset is not None:
            table = table.filter(subset.mask(table["key"]))
        tables.append(table.slice(piece.start, piece.stop - piece.start))
    return pa.concat_tables(tables)


def rows_of(table: pa.Table) -> Rows:
    return Rows(
        table["key"].to_pylist(),
        table["image"].to_pylist(),
        [captions for chunk in table["captions"].chunks for captions in caption_lists(chunk)],
        table["superpixels"].to_pylist(),
    )


def _read_group(dataset: str, piece: Piece, fingerprint: str) -> pa.Table:
    table = _row_group(storage.join(dataset, piece.file), piece.row_group, fingerprint)
    if MAY_BE_MISSING not in table.column_names:
        table = table.append_column(MAY_BE_MISSING, pa.nulls(len(table), pa.binary()))
    return table.select(COLUMNS)


@lru_cache(maxsize=MOST_FOOTERS)
def _footer(path: str, fingerprint: str) -> pq.FileMetaData:
    """Of a part of the dataset with that fingerprint: a process reads it once."""
    filesystem, inner = storage.filesystem(path)
    with storage.reading(path), pq.ParquetFile(inner, filesystem=filesystem) as file:
        return file.metadata


@storage.retried
def _row_group(path: str, row_group: int, fingerprint: str) -> pa.Table:
    footer = _footer(path, fingerprint) if fingerprint else None
    filesystem, inner = storage.filesystem(path)
    with (
        storage.reading(path),
        pq.ParquetFile(inner, filesystem=filesystem, pre_buffer=True, metadata=footer) as file,
    ):
        return file.read_row_group(row_group, columns=COLUMNS, use_threads=False)


def caption_lists(column: pa.ListArray) -> list[list[dict[str, Any]]]:
    """`captions` of n rows: kind and sentences of each. Arrow's own conversion, value by value,
    takes ten times as long."""
    structs = column.flatten()
    names = [structs.type.field(n).name for n in range(structs.type.num_fields)]
    fields = dict(zip(names, structs.flatten(), strict=True))
    sentences = fields["sentences"].flatten().to_numpy(zero_copy_only=False).tolist()
    kinds = fields["kind"].to_numpy(zero_copy_only=False).tolist()
    cut = _cut(sentences, fields["sentences"])
    captions = [{"kind": k, "sentences": s} for k, s in zip(kinds, cut, strict=True)]
    return _cut(captions, column)


def _cut(values: list[Any], lists: pa.ListArray) -> list[list[Any]]:
    """`values` end to end, cut into the lengths of `lists`."""
    ends = np.cumsum(pc.fill_null(lists.value_lengths(), 0).to_numpy()).tolist()
    return [values[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
