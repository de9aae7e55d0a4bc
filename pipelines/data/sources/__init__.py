"""Reads sources of every kind: lists of URLs and captions, and collections of images.
The data stage's first step: lists are planned as raw rows, containers are read chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from caft.errors import DataError
from pipelines import storage
from pipelines.data.config import SourceConfig
from pipelines.data.sources import paths
from pipelines.data.sources.columns import DREAMLIP_CAPTION_COLUMNS, DREAMLIP_URL_COLUMN
from pipelines.data.sources.datasets import read_part
from pipelines.data.sources.detect import detect_kind, source_files, source_identity
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
    "check_source",
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

# Kinds whose files hold the images themselves: `list_containers` and `read_container` read them,
# `read_tables` and `parse_rows` all others.
CONTAINERS = ("webdataset", "dataset")
CHECKED_ROWS = 1000


def check_source(source: SourceConfig) -> None:
    """Look at a source's first rows, so that a wrong one fails before anything starts.

    Raises:
        DataError: a file that is missing, empty, corrupt, of an unknown kind or not readable; a
            column that is not there; a quote that is not closed, as far as the first rows show.
        StorageError: nobody answers where it lies.
    """
    storage.require_answer(source.path)
    kind = detect_kind(source)
    if kind not in ("table", "cc3m", "cc12m") and source.url_column is not None:
        raise DataError(f"{source.path}: url_column is set, but a {kind} has no columns of URLs")
    if kind in ("sharegpt4v", "dataset") and source.caption_columns is not None:
        raise DataError(f"{source.path}: caption_columns is set, but a {kind} has its own captions")
    if kind in CONTAINERS:
        containers = list_containers(source)
        if next(read_container(containers[0], source), None) is None:
            raise DataError(f"{containers[0]}: no image in it; give a source with at least one")
        return
    rows = bad = 0
    for table in read_tables(source):
        rows += table.num_rows
        bad += table["reason"].to_pylist().count("bad_row")
        if rows >= CHECKED_ROWS:
            break
    if not rows:
        raise DataError(f"{source.path}: no row in it; give a source with at least one image")
    if rows == bad:
        raise DataError(
            f"{source.path}: none of its first {rows:,} rows has the columns that are due: "
            f"{table['detail'][0].as_py()}; mend the list, or name its kind"
        )


def read_tables(source: SourceConfig, extra_columns: Sequence[str] = ()) -> Iterator[pa.Table]:
    """Stream a list, or a folder of images, as tables of RAW_SCHEMA in the order of its files.

    Rows that cannot be used are among them, with reason and detail. `columns` holds those of
    `extra_columns` that the source has. Memory is bounded by blocks of a few megabytes.

    Raises:
        DataError: as `check_source`, and broken quoting or JSON anywhere.
    """
    kind = detect_kind(source)
    if kind == "folder":
        yield from read_folder(source, extra_columns)
        return
    for file in source_files(source):
        yield from read_list(file.path, source, kind, extra_columns)


def list_containers(source: SourceConfig) -> list[str]:
    """The tars of a WebDataset, or the part files of a dataset of ours, in order.

    Raises:
        DataError: there is none, or the dataset is not whole.
    """
    return [file.path for file in source_files(source)]


def read_container(
    path: str, source: SourceConfig, extra_columns: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Stream the rows of one container, each with its image in `data`.

    Rows of a tar have `path::member` as URL. Rows of a dataset keep their URL, key and sentences,
    and carry `original_width` and `original_height` in pixels.

    Raises:
        DataError: a container that is damaged or ends early.
    """
    if paths.suffix(path) == ".parquet":
        yield from read_part(path, source)
    else:
        yield from read_tar(path, source, extra_columns)
