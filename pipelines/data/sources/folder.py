"""Reads a folder of images, and all below it, with their captions in .txt and .json beside them.
One of the readers of lists: the images themselves are read later, like those of any list."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from pipelines import storage
from pipelines.data.config import SourceConfig
from pipelines.data.sources import paths
from pipelines.data.sources.raw import RAW_SCHEMA, in_batches
from pipelines.data.sources.tars import read_captions, read_columns, read_fields

BATCH_ROWS = 1024
# Captions are small files: reading them one by one would wait for each.
READERS = 16


def read_folder(source: SourceConfig, extra: Sequence[str]) -> Iterator[pa.Table]:
    """Stream the images as tables of RAW_SCHEMA, folder by folder, in the order of their names.

    Raises:
        DataError: no such folder, or one that cannot be read.
    """
    with ThreadPoolExecutor(READERS) as readers:
        for images in in_batches(_images(source.path), BATCH_ROWS):
            rows = list(readers.map(lambda image: _row(image, source, extra), images))
            yield pa.Table.from_pylist(rows, RAW_SCHEMA)


def count_images(source: SourceConfig) -> int:
    return sum(1 for _ in _images(source.path))


def _images(path: str) -> Iterator[tuple[str, str | None, str | None]]:
    """(image, .txt beside it, .json beside it) as full paths."""
    for files in paths.walk(path):
        names = {file.path for file in files}
        for file in files:
            stem, ending = os.path.splitext(file.path)
            if ending.lower() in paths.IMAGES:
                text, fields = f"{stem}.txt", f"{stem}.json"
                yield (
                    file.path,
                    text if text in names else None,
                    fields if fields in names else None,
                )


def _row(
    found: tuple[str, str | None, str | None], source: SourceConfig, extra: Sequence[str]
) -> dict[str, Any]:
    image, text, json = found
    fields = read_fields(storage.read_bytes(json) if json else None)
    captions = read_captions(source, storage.read_bytes(text) if text else None, fields)
    columns = list(read_columns(fields, extra).items())
    return {"url": image, "captions": captions, "columns": columns, "reason": None, "detail": ""}
