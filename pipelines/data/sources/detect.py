"""Tells what kind a source is from its files' names and first bytes, and which files it has.
Asked by every entry of this package before it chooses a reader."""

from __future__ import annotations

import hashlib

from caft.errors import DataError
from pipelines import storage
from pipelines.data.config import SourceConfig, SourceKind
from pipelines.data.dataset import MANIFEST
from pipelines.data.images.formats import IMAGES, UNREAD
from pipelines.data.sources import paths
from pipelines.data.sources.columns import is_known_url
from pipelines.data.sources.datasets import list_parts
from pipelines.data.sources.dialect import find_form, headerless_kind
from pipelines.data.sources.embedded import image_column
from pipelines.data.sources.encodings import UTF8, head_as_utf8, marked
from pipelines.data.sources.json_arrays import array_kind
from pipelines.data.sources.lists import JSON_START, PARQUET_MARK, list_form
from pipelines.data.sources.parquet import is_record, open_parquet
from pipelines.data.sources.tar_members import MARK, MARK_AT

SUFFIXES: dict[SourceKind, tuple[str, ...]] = {
    "table": paths.TABLES,
    "embedded": (".parquet", ".pq"),
    "cc3m": (".tsv",),
    "cc12m": (".tsv",),
    "sharegpt4v": (".json",),
    "webdataset": (".tar", ".tgz"),
}
# Kinds whose files hold the images themselves: `list_containers` and `read_container` read them,
# `read_tables` and `parse_rows` all others.
CONTAINERS = ("webdataset", "dataset", "embedded")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # of Hugging Face's image folders


def detect_kind(source: SourceConfig) -> SourceKind:
    """The source's kind, which is not `auto`.

    Raises:
        DataError: no such file, an empty one, or one of a kind that cannot be read.
    """
    if source.kind != "auto":
        return source.kind
    if paths.is_folder(source.path):
        return _kind_of_folder(source)
    return _kind_of_file(paths.find_files(source.path)[0].path, source)


def source_files(source: SourceConfig) -> list[paths.File]:
    """The list files, tars or part files of a source of any kind but `folder`, in order."""
    kind = detect_kind(source)
    if kind == "dataset":
        return list_parts(source)
    if kind == "table" and paths.is_folder(source.path):
        named = [file for files in paths.walk(source.path) for file in files if _is_metadata(file)]
        if named:
            return named
    return paths.find_files(source.path, SUFFIXES[kind])


def source_identity(source: SourceConfig) -> list[str]:
    """What tells whether a source changed: names and sizes of its files and those of its captions;
    a folder of images has one digest of both for each folder in it."""
    captions = source.captions_from
    theirs = [] if captions is None else paths.find_files(captions.path, paths.TABLES)
    return _files_of(source) + [f"{file.path} {file.bytes}" for file in theirs]


def _files_of(source: SourceConfig) -> list[str]:
    if detect_kind(source) != "folder":
        return [f"{file.path} {file.bytes}" for file in source_files(source)]
    return [
        hashlib.sha256(
            "\n".join(f"{file.path} {file.bytes}" for file in files).encode()
        ).hexdigest()
        for files in paths.walk(source.path)
    ]


def _kind_of_folder(source: SourceConfig) -> SourceKind:
    path = source.path
    if storage.exists(storage.join(path, MANIFEST)):
        return "dataset"
    records: list[str] = []
    for files in paths.walk(path):
        endings = {paths.suffix(file.path) for file in files}
        if endings.intersection(SUFFIXES["webdataset"]):
            return "webdataset"
        if any(_is_metadata(file) for file in files):
            return "table"
        if endings.intersection((*IMAGES, *UNREAD)):
            return "folder"
        lists = [file for file in files if paths.is_one_of(file.path, paths.TABLES)]
        if lists and not _is_record_of_files(lists[0].path, source):
            return _kind_of_file(lists[0].path, source)
        records += [file.path for file in lists]
    if records:
        return _kind_of_file(records[0], source)
    raise DataError(
        f"{path}: neither a dataset of ours nor images, tars or lists in this folder; "
        f"lists are {', '.join(paths.TABLES)} files"
    )


def _is_record_of_files(path: str, source: SourceConfig) -> bool:
    """Whether a list is img2dataset's notes on a folder of images, which is walked next."""
    if paths.suffix(path) != ".parquet" or not is_record(path):
        return False
    return paths.is_folder(path.removesuffix(".parquet"))


def _is_metadata(file: paths.File) -> bool:
    return file.path.rpartition("/")[2].lower() in METADATA


def _kind_of_file(path: str, source: SourceConfig) -> SourceKind:
    ending = paths.suffix(path)
    if ending in SUFFIXES["webdataset"]:
        return "webdataset"
    head = paths.head(path, 1024)
    if head[MARK_AT:].startswith(MARK):
        return "webdataset"
    if ending not in (*paths.TABLES, ".json") and not _is_list(path, head, source):
        if ending == ".txt":
            raise DataError(f"{path}: a .txt says nothing of its columns; make it a .csv or .tsv")
        raise DataError(
            f"{path}: not a {', '.join(paths.TABLES)}, .json or .tar file, nor a folder of images; "
            "give one of these, or name its kind"
        )
    form = list_form(path, source)
    if form == "parquet":
        with open_parquet(path) as file:
            return "embedded" if image_column(file.schema_arrow, source) else "table"
    if form == "array":
        return "sharegpt4v" if array_kind(path, source) == "conversations" else "table"
    if form == "delimited" and ending == ".tsv":
        return headerless_kind(path, source) or "table"
    return "table"


def _is_list(path: str, head: bytes, source: SourceConfig) -> bool:
    """Whether a file whose name says nothing is a list by its first bytes."""
    text = head_as_utf8(head, source.encoding or marked(head) or UTF8)
    if head.startswith(PARQUET_MARK) or JSON_START.match(text):
        return True
    if b"\0" in text[:2]:
        return False
    form = find_form(path, source)
    known = [is_known_url(name) for name in form.names]
    return len(form.names) > 1 and any(known)
