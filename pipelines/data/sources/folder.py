"""Reads a folder of images, and all below it, with their captions in .txt and .json beside them.
One of the readers of lists: the images themselves are read later, like those of any list."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from pipelines.data.config import SourceConfig
from pipelines.data.images.formats import IMAGES, UNREAD
from pipelines.data.sources import paths
from pipelines.data.sources.beside import JSON_ENDING, TEXT_ENDINGS, look_beside
from pipelines.data.sources.cells import cell_strings
from pipelines.data.sources.columns import LeftOut
from pipelines.data.sources.places import read_bytes
from pipelines.data.sources.raw import RAW_SCHEMA, in_batches

BATCH_ROWS = 1024
# Captions are small files: reading them one by one would wait for each.
READERS = 16
MAX_TEXT_BYTES = 16 * 2**20
Found = tuple[str, dict[str, paths.File]]  # an image, and the texts beside it by their ending


def read_folder(
    source: SourceConfig, extra: Sequence[str], left_out: LeftOut
) -> Iterator[pa.Table]:
    """Stream the images as tables of RAW_SCHEMA, folder by folder, in the order of their names.

    Raises:
        DataError: no such folder, or one that cannot be read.
    """
    with ThreadPoolExecutor(READERS) as readers:
        for images in in_batches(_images(source.path, left_out), BATCH_ROWS):
            rows = []
            for row, unused in readers.map(lambda image: _row(image, source, extra), images):
                left_out.add_fields(unused)
                rows.append(row)
            yield pa.Table.from_pylist(rows, RAW_SCHEMA)


def count_images(source: SourceConfig) -> int:
    return sum(1 for _ in _images(source.path, LeftOut()))


def _images(path: str, left_out: LeftOut) -> Iterator[Found]:
    for files in paths.walk(path):
        texts: dict[str, dict[str, paths.File]] = {}
        images: list[tuple[str, str]] = []
        for file in files:
            stem, ending = os.path.splitext(file.path)
            ending = ending.lower()
            if ending in IMAGES or ending in UNREAD:
                images.append((file.path, stem))
            elif ending[1:] in (*TEXT_ENDINGS, JSON_ENDING):
                texts.setdefault(stem, {})[ending[1:]] = file
            else:
                left_out.count(f"files: {ending or 'without an ending'}", 1)
        used: set[str] = set()
        for image, stem in images:
            # `x.jpg` with `x.txt`, or with `x.jpg.txt`.
            yield image, texts.get(stem, {}) | texts.get(image, {})
            used |= {stem, image}
        for stem in texts.keys() - used:
            left_out.count("files: texts without an image", len(texts[stem]))


def _row(
    found: Found, source: SourceConfig, extra: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A row of RAW_SCHEMA, and the fields beside it that are left out."""
    path, texts = found
    ending = os.path.splitext(path)[1][1:].lower()
    row: dict[str, Any] = {"url": path, "captions": [], "columns": [], "reason": None, "detail": ""}
    if f".{ending}" in UNREAD:
        detail = f"the format .{ending} is not read"
        return row | {"reason": "not_an_image", "detail": detail}, {}
    files = {
        name: read_bytes(file.path) if file.bytes <= MAX_TEXT_BYTES else None
        for name, file in texts.items()
    }
    beside = look_beside(ending, files, source, extra)
    complaints = [beside.complaint] if beside.complaint else []
    captions = []
    for name, kind, cell in beside.captions:
        said: list[str] = []
        captions.append({"source": name, "kind": kind, "text": cell_strings(cell, said)})
        complaints += [f"{name}: {one}" for one in said]
    if complaints and not any(caption["text"] for caption in captions):
        row |= {"reason": "no_caption", "detail": complaints[0]}
    row |= {"captions": captions, "columns": list(beside.columns.items())}
    return row, beside.left_out
