"""Reads ShareGPT4V's lists: one JSON array of conversations about an image, taken piece by piece.
One of the readers of lists; the first answer of a conversation is the image's caption."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import ijson
import pyarrow as pa

from caft.errors import DataError
from pipelines.data.config import SourceConfig
from pipelines.data.sources import paths
from pipelines.data.sources.raw import RAW_SCHEMA, clean, clean_texts, in_batches, locate, shorten
from pipelines.data.sources.tars import read_columns

CAPTION = "sharegpt4v"
BATCH_ROWS = 4096


def read_sharegpt4v(path: str, source: SourceConfig, extra: Sequence[str]) -> Iterator[pa.Table]:
    """Stream a list as tables of RAW_SCHEMA.

    Raises:
        DataError: no JSON array, or one that is broken.
    """
    with paths.open_stream(path) as stream:
        yield from parse_sharegpt4v(stream, path, source, extra)


def parse_sharegpt4v(
    stream: pa.NativeFile, path: str, source: SourceConfig, extra: Sequence[str]
) -> Iterator[pa.Table]:
    root = source.image_root or paths.parent(path)
    for entries in in_batches(list_entries(stream, path), BATCH_ROWS):
        rows = [_row(entry, number, root, extra) for number, entry in entries]
        yield pa.Table.from_pylist(rows, RAW_SCHEMA)


def list_entries(stream: pa.NativeFile, path: str) -> Iterator[tuple[int, Any]]:
    """Number from 1 and value of each entry; errors as `read_sharegpt4v`."""
    number = 0
    try:
        for number, entry in enumerate(ijson.items(stream, "item", use_float=True), 1):
            yield number, entry
    except ijson.JSONError as error:
        reason = paths.one_line(error)
        raise DataError(
            f"{path}: broken JSON after entry {number:,}: {reason}; fetch or write the file again"
        ) from None


def _row(entry: Any, number: int, root: str, extra: Sequence[str]) -> dict[str, Any]:
    image = entry.get("image") if isinstance(entry, dict) else None
    if not isinstance(image, str):
        detail = f"entry {number}: no image: {shorten(clean(str(entry)))}"
        return {"url": "", "captions": [], "columns": [], "reason": "bad_row", "detail": detail}
    url, reason, detail = locate(clean(image.strip()), root)
    turns = entry.get("conversations")
    answers = [
        turn.get("value")
        for turn in (turns if isinstance(turns, list) else [])
        if isinstance(turn, dict) and turn.get("from") == "gpt"
    ]
    return {
        "url": url,
        "captions": [{"source": CAPTION, "kind": "long", "text": clean_texts(answers[:1])}],
        "columns": list(read_columns(entry, extra).items()),
        "reason": reason,
        "detail": detail,
    }
