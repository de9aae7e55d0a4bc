"""Images that are files of their own: found below a set's folders, and read as a benchmark's rows.
Beside the Parquet rows of the data stage; used for published sets, lists and folders of classes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from caft.errors import DataError
from pipelines import storage
from pipelines.evaluate.sets.base import Entry
from pipelines.evaluation_input import Piece

PIECE_IMAGES = 32  # read by one task: enough to keep it busy, few enough to hold


@dataclass(frozen=True)
class ImageFiles:
    """The files of N images, and of their label maps where they have any."""

    place: str
    images: tuple[str, ...]
    label_maps: tuple[str, ...] = ()

    @property
    def pieces(self) -> tuple[Piece, ...]:
        starts = range(0, len(self.images), PIECE_IMAGES)
        return tuple(Piece("", number, first) for number, first in enumerate(starts))

    def read(self, piece: Piece) -> list[dict[str, Any]]:
        """Raises StorageError where a file is gone."""
        rows = []
        for position in range(piece.first, min(piece.first + PIECE_IMAGES, len(self.images))):
            path = self.images[position]
            row: dict[str, Any] = {"url": path, "image": storage.read_bytes(path)}
            if self.label_maps:
                row["label_map"] = storage.read_bytes(self.label_maps[position])
            rows.append(row)
        return rows


@dataclass(frozen=True)
class File:
    """A file that is there."""

    path: str
    bytes: int


@dataclass(frozen=True)
class Present:
    """An entry whose files are all there."""

    entry: Entry
    image: File
    label_map: File | None


class Finder:
    """Looks for files in folders, each of which is listed once."""

    def __init__(self, folders: Sequence[str]) -> None:
        self._folders = folders
        self._listed: dict[str, dict[str, int]] = {}

    def find(self, name: str) -> File | None:
        """A file with content by its path below one of the folders, else by its name in one."""
        if leads_out(name):
            raise DataError(f"'{name}' leads out of the set's folders; fetch the set's lists again")
        for relative in dict.fromkeys((name, name.rpartition("/")[2])):
            place, _, base = relative.rpartition("/")
            for root in self._folders:
                folder = storage.join(root, place) if place else root
                if folder not in self._listed:
                    self._listed[folder] = storage.file_sizes(folder)
                size = self._listed[folder].get(base, 0)
                if size:  # an empty file is what is left of a download that failed
                    return File(storage.join(folder, base), size)
        return None


def leads_out(name: str) -> bool:
    """Whether a path is not below the folder that it is taken from."""
    return name.startswith("/") or ".." in name.split("/")


def fingerprint(present: Iterable[Present], settings: Iterable[str]) -> str:
    """Digest of names, sizes and texts: the same wherever the files lie. Images are told apart by
    their size in bytes; reading them all would take longer than encoding them."""
    digest = hashlib.sha256(json.dumps(list(settings)).encode())
    for found in present:
        entry = found.entry
        label_map = [entry.label_map, found.label_map.bytes] if found.label_map else []
        regions = [[region.text, region.rle] for region in entry.regions]
        facts = [entry.image, found.image.bytes, entry.captions, regions, label_map]
        digest.update(json.dumps(facts).encode())
    return digest.hexdigest()
