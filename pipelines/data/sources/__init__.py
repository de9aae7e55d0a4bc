"""Reads sources of every kind: lists of URLs and captions, and collections of images.
The data stage's first step: lists are planned as raw rows, containers are read chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from pipelines.data.config import SourceConfig
from pipelines.data.sources import paths
from pipelines.data.sources.columns import (
    DREAMLIP_CAPTION_COLUMNS,
    DREAMLIP_URL_COLUMN,
    LeftOut,
)
from pipelines.data.sources.datasets import read_part
from pipelines.data.sources.detect import (
    CONTAINERS,
    SUFFIXES,
    detect_kind,
    source_files,
    source_identity,
)
from pipelines.data.sources.embedded import read_embedded
from pipelines.data.sources.files import fetch_file, is_file
from pipelines.data.sources.folder import read_folder
from pipelines.data.sources.lists import read_list
from pipelines.data.sources.raw import RAW_SCHEMA
from pipelines.data.sources.rows import parse_rows
from pipelines.data.sources.sample import sample_rows
from pipelines.data.sources.tars import read_tar

__all__ = [
    "CONTAINERS",
    "DREAMLIP_CAPTION_COLUMNS",
    "DREAMLIP_URL_COLUMN",
    "RAW_SCHEMA",
    "LeftOut",
    "detect_kind",
    "fetch_file",
    "is_file",
    "list_containers",
    "parse_rows",
    "read_container",
    "read_tables",
    "sample_rows",
    "source_identity",
]


def read_tables(
    source: SourceConfig, extra_columns: Sequence[str] = (), left_out: LeftOut | None = None
) -> Iterator[pa.Table]:
    """Stream a list, or a folder of images, as tables of RAW_SCHEMA in the order of its files.

    Rows that cannot be used are among them, with reason and detail. `columns` holds those of
    `extra_columns` that the source has. Memory is bounded by blocks of a few megabytes.

    Args:
        left_out: takes note of columns and files that are not read.

    Raises:
        DataError: as `check_source`.
    """
    left_out = LeftOut() if left_out is None else left_out
    kind = detect_kind(source)
    if kind == "folder":
        yield from read_folder(source, extra_columns, left_out)
        return
    for file in source_files(source):
        yield from read_list(file.path, source, kind, extra_columns, left_out)


def list_containers(source: SourceConfig) -> list[str]:
    """The tars of a WebDataset, or the part files of a dataset of ours, in order.

    Raises:
        DataError: there is none, or the dataset is not whole.
    """
    return [file.path for file in source_files(source)]


def read_container(
    path: str,
    source: SourceConfig,
    extra_columns: Sequence[str] = (),
    left_out: LeftOut | None = None,
    span: Sequence[int] | None = None,
    images: bool = True,
) -> Iterator[dict[str, Any]]:
    """Stream the rows of one container, each with its image in `data`.

    Rows of a tar have `path::member` as URL, rows of Parquet with images `path::number`. Rows of a
    dataset keep their URL, key and sentences, and carry `original_width` and `original_height` in
    pixels.

    Args:
        span: first byte and end of a part of a tar.
        images: whether to read them; without, the rows are the same in number and order.

    Raises:
        DataError: a container that is damaged or ends early.
    """
    left_out = LeftOut() if left_out is None else left_out
    if paths.suffix(path) not in SUFFIXES["embedded"]:
        yield from read_tar(path, source, extra_columns, left_out, span, images)
    elif detect_kind(source) == "dataset":
        yield from read_part(path, source, images)
    else:
        yield from read_embedded(path, source, extra_columns, left_out, images)
