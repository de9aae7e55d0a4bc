"""The embedding on disk: its manifest, and its reader.
The embed stage writes it; search opens it here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from caft.errors import DataError, StorageError
from pipelines import storage
from pipelines.data.write import read_table

MANIFEST = "embedding.json"
SCHEMA_VERSION = 1
HINT = "give the output of caft embed"


@dataclass(frozen=True)
class Embedding:
    """A finished embedding folder.

    Attributes:
        manifest: `model` says what made it, `files` lists its parts, `counts` its rows.
        has_fine, has_images: whether its rows hold them.
    """

    folder: str
    manifest: Mapping[str, Any]

    @property
    def rows(self) -> int:
        return int(self.manifest["counts"]["kept"])

    @property
    def model(self) -> Mapping[str, Any]:
        return self.manifest["model"]

    @property
    def has_fine(self) -> bool:
        return bool(self.manifest["config"]["fine"])

    @property
    def has_images(self) -> bool:
        return bool(self.manifest["config"]["images"])

    @property
    def fingerprint(self) -> str:
        digests = "".join(entry["sha256"] for entry in self.manifest["files"])
        return hashlib.sha256(digests.encode()).hexdigest()

    @cached_property
    def whole(self) -> np.ndarray:
        """Every row's whole embedding, (N, D) float16 of length 1, in the order of the parts.

        A local folder keeps them in one file beside the parts, from which they are mapped: made by
        the first search, read by the others without loading it.

        Raises:
            DataError: a part is missing or damaged.
        """
        if not storage.is_local(self.folder):
            return self._read_whole()
        name = f"whole-{self.fingerprint[:16]}.npy"
        path = storage.join(self.folder, name)
        inner = storage.filesystem(path)[1]
        if not storage.exists(path):
            matrix = self._read_whole()
            try:
                with storage.staged(path) as file, open(file, "wb") as stream:
                    np.save(stream, matrix)
            except StorageError:  # a folder that this user can only read
                return matrix
        return np.load(inner, mmap_mode="r")

    def take(self, rows: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        """Some rows' columns, in the order asked; of each part only row groups with such a row are
        read. `fine` comes as an array (M, D).

        Raises:
            DataError: a part is missing or damaged.
        """
        found: dict[int, dict[str, Any]] = {}
        first = 0
        for entry in self.manifest["files"]:
            wanted = sorted({row - first for row in rows if 0 <= row - first < entry["rows"]})
            if wanted:
                path = storage.join(self.folder, entry["name"])
                for row, values in _take(path, wanted, columns):
                    found[first + row] = values
            first += entry["rows"]
        return [found[row] for row in rows]

    def _read_whole(self) -> np.ndarray:
        matrix = np.empty((self.rows, int(self.model["width"])), np.float16)
        first = 0
        for entry in self.manifest["files"]:
            path = storage.join(self.folder, entry["name"])
            try:
                column = read_table(path, ["whole"])["whole"]
            except StorageError as error:
                raise DataError(f"{error}; {HINT}, or run it again into another folder") from None
            for chunk in column.chunks:
                values = chunk.flatten().to_numpy().reshape(len(chunk), -1)
                matrix[first : first + len(values)] = values
                first += len(values)
        return matrix


def open_embedding(folder: str) -> Embedding:
    """Open a finished embedding, after checking that its parts are there.

    Raises:
        DataError: the folder is no embedding or an unfinished one, or a part is missing or cut
            short.
    """
    path = storage.join(folder, MANIFEST)
    if not storage.exists(path):
        begun = storage.exists(storage.join(folder, "embed.yaml"))
        if begun:
            raise DataError(
                f"{folder}: an embedding that is not finished; run the same caft embed again"
            )
        raise DataError(f"{folder}: no {MANIFEST}, so this is no embedding; {HINT}")
    try:
        manifest = storage.read_json(path)
        if manifest["schema_version"] != SCHEMA_VERSION:
            raise DataError(
                f"{path}: of schema {manifest['schema_version']}, this version reads "
                f"{SCHEMA_VERSION}; embed again"
            )
        expected = {entry["name"]: entry["bytes"] for entry in manifest["files"]}
        embedding = Embedding(folder, manifest)
        _ = embedding.rows, embedding.model["width"], embedding.has_fine, embedding.has_images
    except (StorageError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not the manifest of an embedding: {error}; {HINT}") from None
    there = storage.file_sizes(folder)
    for name, size in expected.items():
        if there.get(name) != size:
            what = f"has {there[name]} bytes" if name in there else "is missing"
            raise DataError(
                f"{storage.join(folder, name)}: {what}, {MANIFEST} lists it with {size}; embed "
                "again, into another folder"
            )
    return embedding


def _take(
    path: str, rows: Sequence[int], columns: Sequence[str]
) -> list[tuple[int, dict[str, Any]]]:
    fs, inner = storage.filesystem(path)
    found: list[tuple[int, dict[str, Any]]] = []
    try:
        with pq.ParquetFile(inner, filesystem=fs) as file:
            first = 0
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                here = [row for row in rows if first <= row < first + count]
                if here:
                    table = file.read_row_group(group, columns=list(columns))
                    table = table.take(pa.array([row - first for row in here]))
                    found += zip(here, _values(table), strict=True)
                first += count
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read: {error}; embed again") from None
    return found


def _values(table: pa.Table) -> list[dict[str, Any]]:
    """Rows as dictionaries; fine embeddings stay arrays."""
    plain = table.drop_columns(["fine"]) if "fine" in table.column_names else table
    rows = plain.to_pylist() if plain.num_columns else [{} for _ in range(len(table))]
    if plain is not table:
        column = table["fine"].combine_chunks()
        array = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
        segments, width = array.type.list_size, array.type.value_type.list_size
        values = array.flatten().flatten().to_numpy().reshape(-1, segments, width)
        for row, fine in zip(rows, values, strict=True):
            row["fine"] = fine
    return rows
