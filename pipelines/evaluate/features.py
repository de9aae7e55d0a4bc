"""Features kept on disk or in a bucket, in blocks, so that a model reads every image once.
Between the encoders and the scores; a folder counts as features only once its manifest is there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from safetensors.torch import load, save
from torch import Tensor

from caft.errors import StorageError
from caft.scoring import IMAGE_TILE
from pipelines import storage

BLOCK_ROWS = 4 * IMAGE_TILE
FORMAT_VERSION = 2  # raise it when what is stored, or how a caption is cut into chunks, changes
MANIFEST, ASIDE = "manifest.json", "aside.safetensors"

Rows = Mapping[str, Tensor]


@dataclass(frozen=True)
class StoredFeatures:
    """Finished features of `count` images or captions."""

    folder: str
    count: int

    def blocks(self) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Every block in order, each with the index of its first row."""
        for first in range(0, self.count, BLOCK_ROWS):
            yield first, load(storage.read_bytes(storage.join(self.folder, _block(first))))

    def all(self) -> dict[str, Tensor]:
        """All rows at once; for captions, which are small."""
        blocks = [block for _, block in self.blocks()]
        return {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}

    def aside(self) -> dict[str, Tensor]:
        """What was kept beside the rows."""
        return load(storage.read_bytes(storage.join(self.folder, ASIDE)))


def features_key(**parts: str) -> str:
    """Name of a folder of features: a digest of the model, the data and what was made of them."""
    text = json.dumps({"version": FORMAT_VERSION, **parts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def open_features(folder: str) -> StoredFeatures | None:
    """The features in a folder; None where they were never finished, or a file is not whole."""
    manifest = storage.join(folder, MANIFEST)
    if not storage.exists(manifest):
        return None
    try:
        known = storage.read_json(manifest)
        sizes = {name: storage.size_bytes(storage.join(folder, name)) for name in known["bytes"]}
    except (StorageError, KeyError, TypeError):
        return None
    return StoredFeatures(folder, int(known["count"])) if sizes == known["bytes"] else None


class FeatureWriter:
    """Writes rows as they come, in their order, holding one block in memory."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._pending: list[Rows] = []
        self._waiting = self._written = 0
        self._bytes: dict[str, int] = {}
        storage.delete_file(storage.join(folder, MANIFEST))  # of what is not whole

    def add(self, rows: Rows) -> None:
        """Raises StorageError when the place is full or not writable."""
        self._pending.append(rows)
        self._waiting += len(next(iter(rows.values())))
        while self._waiting >= BLOCK_ROWS:
            self._write_block(BLOCK_ROWS)

    def finish(self, aside: Rows | None = None) -> StoredFeatures:
        """Write what is left, and the manifest last."""
        if self._waiting:
            self._write_block(self._waiting)
        if aside is not None:
            self._write(ASIDE, aside)
        known = {"count": self._written, "bytes": self._bytes}
        storage.write_json(storage.join(self._folder, MANIFEST), known)
        return StoredFeatures(self._folder, self._written)

    def _write_block(self, rows: int) -> None:
        names = self._pending[0].keys()
        joined = {name: torch.cat([part[name] for part in self._pending]) for name in names}
        block = {name: tensor[:rows].contiguous() for name, tensor in joined.items()}
        self._write(_block(self._written), block)
        self._pending = [{name: tensor[rows:] for name, tensor in joined.items()}]
        self._written += rows
        self._waiting -= rows

    def _write(self, name: str, tensors: Rows) -> None:
        data = save(dict(tensors))
        storage.write_bytes(storage.join(self._folder, name), data)
        self._bytes[name] = len(data)


def _block(first: int) -> str:
    return f"rows-{first:08d}.safetensors"
