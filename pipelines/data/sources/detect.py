"""Tells what kind a source is from its files' names and first bytes, and which files it has.
Asked by every entry of this package before it chooses a reader."""

from __future__ import annotations

import hashlib

from caft.errors import DataError
from pipelines import storage
from pipelines.data.config import SourceConfig, SourceKind
from pipelines.data.dataset import MANIFEST
from pipelines.data.sources import paths
from pipelines.data.sources.datasets import list_parts
from pipelines.data.sources.delimited import headerless_kind

SUFFIXES: dict[SourceKind, tuple[str, ...]] = {
    "table": paths.TABLES,
    "cc3m": (".tsv",),
    "cc12m": (".tsv",),
    "sharegpt4v": (".json",),
    "webdataset": (".tar", ".tgz"),
}


def detect_kind(source: SourceConfig) -> SourceKind:
    """The source's kind, which is not `auto`.

    Raises:
        DataError: no such file, an empty one, or one of a kind that cannot be read.
    """
    if source.kind != "auto":
        return source.kind
    if paths.is_folder(source.path):
        return _kind_of_folder(source.path)
    return _kind_of_file(paths.find_files(source.path)[0].path)


def source_files(source: SourceConfig) -> list[paths.File]:
    """The list files, tars or part files of a source of any kind but `folder`, in order."""
    kind = detect_kind(source)
    if kind == "dataset":
        return list_parts(source)
    return paths.find_files(source.path, SUFFIXES[kind])


def source_identity(source: SourceConfig) -> list[str]:
    """What tells whether a source changed: names and sizes of its files; a folder of images has
    one digest of both for each folder in it."""
    if detect_kind(source) != "folder":
        return [f"{file.path} {file.bytes}" for file in source_files(source)]
    return [
        hashlib.sha256(
            "\n".join(f"{file.path} {file.bytes}" for file in files).encode()
        ).hexdigest()
        for files in paths.walk(source.path)
    ]


def _kind_of_folder(path: str) -> SourceKind:
    if storage.exists(storage.join(path, MANIFEST)):
        return "dataset"
    for files in paths.walk(path):
        endings = {paths.suffix(file.path) for file in files}
        if endings.intersection(SUFFIXES["webdataset"]):
            return "webdataset"
        if endings.intersection(paths.IMAGES):
            return "folder"
        if endings.intersection(paths.TABLES):
            return "table"
    raise DataError(
        f"{path}: neither a dataset of ours nor images, tars or lists in this folder; "
        f"lists are {', '.join(paths.TABLES)} files"
    )


def _kind_of_file(path: str) -> SourceKind:
    ending = paths.suffix(path)
    if ending in (".tar", ".tgz"):
        return "webdataset"
    if ending == ".tsv" and (known := headerless_kind(path)) is not None:
        return known
    if ending == ".json":
        return "sharegpt4v" if paths.head(path).lstrip()[:1] == b"[" else "table"
    if ending in paths.TABLES:
        return "table"
    if ending == ".txt":
        raise DataError(f"{path}: a .txt says nothing of its columns; make it a .csv or .tsv")
    raise DataError(
        f"{path}: not a {', '.join(paths.TABLES)}, .json or .tar file, nor a folder of images; "
        "give one of these, or name its kind"
    )
