"""Rows that models are scored on, and what CAFT takes of them: pixels, superpixels and a caption.
Below the evaluate stage and the held-out evaluation of training, which both score the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from caft.config import FlatImageConfig, ImageConfig, PictureRule
from caft.errors import DataError
from caft.preprocessing import eval_image
from caft.superpixels import stored_labels
from caft.transforms import eval_labels
from pipelines import storage
from pipelines.superpixel_columns import pack_superpixels


@dataclass(frozen=True)
class Piece:
    """Images that are read together; `first` is the position of the first in the benchmark."""

    file: str  # of Parquet; empty where every image is a file of its own
    row_group: int
    first: int


def read_piece(dataset: str, split: str, piece: Piece) -> list[dict[str, Any]]:
    """The rows of one piece with `url`, `image`, `captions` and `superpixels`.

    Raises:
        DataError: the file has been damaged since it was opened.
    """
    columns = ("url", "image", "captions", "superpixels")
    return read_row_group(dataset, piece.file, piece.row_group, split, columns)


def evaluation_caption(captions: Sequence[Mapping[str, Any]]) -> list[str]:
    """The sentences an image is scored with: of its first long caption, else of its first."""
    for caption in captions:
        if caption["kind"] == "long":
            return list(caption["sentences"])
    return list(captions[0]["sentences"])


def read_row_group(
    dataset: str, name: str, index: int, split: str, columns: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Those rows of a row group that are of the split; errors as `read_piece`."""
    path = storage.join(dataset, name)
    fs, inner = storage.filesystem(path)
    try:
        with pq.ParquetFile(inner, filesystem=fs) as file:
            table = file.read_row_group(index, columns=[*columns, "split"])
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path}: corrupt Parquet ({reason}); delete it and run the data stage again"
        ) from None
    return table.filter(pc.equal(table["split"], split)).to_pylist()


@dataclass(frozen=True)
class CAFTPreprocess:
    """Pixels and superpixels of rows: the part of the work that needs no weights."""

    image: ImageConfig | FlatImageConfig
    rule: PictureRule

    def shown_by(self, rule: PictureRule) -> CAFTPreprocess:
        """The same for a benchmark that shows every model its pictures by one rule."""
        return replace(self, rule=rule)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """`images` (n, 3, S, S) uint8 and `superpixels` as `pack_superpixels` gives them."""
        size_px = self.image.image_size_px
        pixels, stored = [], []
        for row in rows:
            try:
                pixels.append(eval_image(row["image"], size_px, self.rule))
                # Stored maps are of the whole picture: of its centre a third of the superpixels
                # could be missing, so a crop is given its own.
                whole = row.get("superpixels") if self.rule == "squash" else None
                labels = stored_labels(whole, self.image)
            except DataError as error:
                raise DataError(f"{row['url']}: {error}") from None
            stored.append(None if labels is None else eval_labels(labels, size_px))
        images = torch.stack(pixels)  # (n, 3, S, S)
        superpixels = pack_superpixels(images, stored, self.image.superpixels)
        return {"images": images.numpy(), "superpixels": superpixels}
