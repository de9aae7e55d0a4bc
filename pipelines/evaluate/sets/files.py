"""Images that are files of their own, read as a benchmark's rows.
Beside the Parquet rows of the data stage; used for published sets and for folders of classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines import storage
from pipelines.evaluate.benchmark import Piece

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
