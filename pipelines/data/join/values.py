"""What an image and its caption rows have in common, by which they are joined.
Both sides of a join, its check and its sample ask here, so that they agree on what is equal."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from caft.errors import DataError
from pipelines.data.config import CaptionsFrom, ListConfig, SourceConfig
from pipelines.data.images.formats import IMAGES, UNREAD
from pipelines.data.sources import CONTAINERS, detect_kind, is_file

KEY = pa.binary(16)  # the first bytes of a value's SHA-256
HERE = "."  # what relative values of a caption list are below, until they are read
JOINABLE = ("no_caption", "bad_text")  # reasons that lie in captions which are replaced
ENDINGS = (*IMAGES, *UNREAD, ".txt", ".json", ".caption")


def joined_list(source: SourceConfig) -> CaptionsFrom:
    assert source.captions_from is not None
    return source.captions_from


def caption_list(source: SourceConfig) -> SourceConfig:
    """The caption list of a source as a source of its own, whose URLs are what is joined.

    Raises:
        DataError: it is no list.
    """
    joined = joined_list(source)
    shared = {name: getattr(joined, name) for name in ListConfig.model_fields}
    column = joined.column or ("key" if joined.on == "key" else None)
    found = SourceConfig(
        name=f"{source.name}.captions_from", url_column=column, image_root=HERE, **shared
    )
    kind = detect_kind(found)
    if kind in CONTAINERS or kind == "folder":
        raise DataError(
            f"{joined.path}: captions_from is a {kind}; give a list: CSV, TSV, JSON or Parquet"
        )
    return found


def image_fields(source: SourceConfig) -> tuple[str, ...]:
    """Columns of an image's row, or fields of the .json beside it, that `image_value` asks for."""
    if source.captions_from is None:
        return ()
    joined = source.captions_from
    if joined.image_field is not None:
        return (joined.image_field.removeprefix("json."),)
    return () if joined.on == "stem" else (joined.on,)


def image_value(url: str, columns: Mapping[str, str], source: SourceConfig) -> str | None:
    """What an image is joined by; None: it has nothing of the kind."""
    joined = joined_list(source)
    if joined.image_field is not None:
        value = columns.get(joined.image_field.removeprefix("json."))
    elif joined.on == "url":
        value = columns.get("url") if is_file(url) else url
    elif joined.on == "key":
        value = columns.get("key") or file_stem(url)
    else:
        value = url
    return _of_kind(value, joined)


def caption_value(url: str, source: SourceConfig) -> str | None:
    """What a row of the caption list is joined by, from its URL as `caption_list` reads it."""
    return _of_kind(url.removeprefix(f"{HERE}/"), joined_list(source))


def no_row(value: str | None, source: SourceConfig) -> dict[str, Any]:
    """The reason of an image that no caption row belongs to."""
    joined = joined_list(source)
    if value is None:
        detail = f"it has no {'/'.join(image_fields(source))} to join captions by"
    else:
        detail = f"no row with the {joined.on} {value[:200]}"
    return {"reason": "no_caption_row", "detail": detail}


def file_stem(path: str) -> str:
    """`0001` of `a.tar::b/0001.jpg`, `http://c/0001.jpg?d` and `0001`."""
    name = path if is_file(path) else re.split(r"[?#]", path)[0]
    name = name.rpartition("::")[2].replace("\\", "/").rstrip("/").rpartition("/")[2]
    stem, ending = os.path.splitext(name)
    return stem if ending.lower() in ENDINGS else name


def words(keys: np.ndarray) -> np.ndarray:
    """Keys (n,) of 16 bytes as text of fixed width, which NumPy sorts and searches."""
    return np.ascontiguousarray(keys).view("S16")


def key_array(keys: np.ndarray) -> pa.Array:
    return pa.FixedSizeBinaryArray.from_buffers(
        KEY, len(keys), [None, pa.py_buffer(np.ascontiguousarray(keys).tobytes())]
    )


def keys_of(table: pa.Table) -> np.ndarray:
    """The column `key` of a table, without nulls, as (n,) of 16 bytes."""
    column = table["key"].combine_chunks()
    array = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
    data = array.buffers()[1]
    if data is None or not len(array):
        return np.empty(0, "V16")
    return np.frombuffer(data, "V16", len(array), array.offset * 16)


def _of_kind(value: str | None, joined: CaptionsFrom) -> str | None:
    if value is None or not value.strip():
        return None
    return file_stem(value.strip()) if joined.on == "stem" else value.strip()
