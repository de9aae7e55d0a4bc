"""Says which files a source has: a file, a folder, a glob or a brace pattern, wherever they lie.
Above `places`, which asks the filesystems; opens files as streams of what they hold."""

from __future__ import annotations

import lzma
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pyarrow as pa
from braceexpand import braceexpand

from caft.errors import DataError
from pipelines import storage
from pipelines.data.sources.places import (
    READERS,
    File,
    full_path,
    glob,
    is_web,
    list_folder,
    look_up,
    one_line,
    open_file,
    reading,
)

__all__ = ["File", "full_path", "list_folder", "one_line", "reading"]

PACKED = (".gz", ".zst", ".bz2", ".xz", ".lz4")
# How files start that are packed, whatever their names say.
MARKS = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\xfd7zXZ\0", "xz"),
    (b"PK\x03\x04", "zip"),
)
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".jsonlines", ".parquet", ".pq")
HEAD_BYTES = 2**20
MAGIC = "*?["


def suffix(path: str) -> str:
    """The file's suffix in lower case, without that of a compression: `.csv` of `a.CSV.gz`."""
    name = path.lower()
    if is_web(path):
        name = name.partition("?")[0]
    ending = os.path.splitext(name)[1]
    if ending in PACKED:
        ending = os.path.splitext(name.removesuffix(ending))[1]
    return ending


def codec(path: str) -> str | None:
    """How a file is compressed, by its first bytes."""
    with open_packed(path) as (_, packed):
        return packed


def is_folder(path: str) -> bool:
    return isinstance(look_up(path), str)


def find_files(path: str, suffixes: tuple[str, ...] = ()) -> list[File]:
    """The files that `path` names, in order; of a folder those directly in it with a suffix.

    Raises:
        DataError: a file or folder that is not there, or a pattern that matches nothing.
    """
    expanded = _expand_braces(path)
    if len(expanded) > 1 and not any(sign in path for sign in MAGIC):
        return _look_up_all(expanded)
    found = [file for one in expanded for file in _find(one, suffixes)]
    if not found:
        wanted = f" of {', '.join(suffixes)}" if suffixes else ""
        raise DataError(f"{path}: no file{wanted} there; give the path of one")
    return found


def walk(path: str) -> Iterator[list[File]]:
    """The files of a folder and of all below it, one list per folder, in a fixed order."""
    yield from _walk(path, set())


def parent(path: str) -> str:
    """The folder of a file, as a full path."""
    return full_path(path).rpartition("/")[0]


def head(path: str, size: int = HEAD_BYTES) -> bytes:
    """The first bytes of a file, uncompressed.

    Raises:
        DataError: the file is empty or cannot be read.
    """
    with open_stream(path) as stream:
        data = stream.read(size)
    if not data:
        raise DataError(f"{path}: the file is empty")
    return data


@contextmanager
def open_stream(path: str) -> Iterator[pa.NativeFile]:
    """A file from its start, uncompressed on the way; errors as in `reading`."""
    with open_packed(path) as (file, packed):
        if packed is None:
            yield file
            return
        with unpacked(file, packed, path) as stream:
            yield stream


@contextmanager
def open_packed(path: str) -> Iterator[tuple[pa.NativeFile, str | None]]:
    """A file from its start as it is stored, and how it is compressed; errors as in `reading`."""
    with reading(path), open_file(path) as (file, mark):
        yield file, _codec(mark)


def unpacked(file: pa.NativeFile, packed: str, path: str) -> pa.NativeFile:
    """A compressed file as a stream of what it holds."""
    if packed == "zip":
        raise DataError(f"{path}: a zip archive; unpack it, or pack its files with gzip or zstd")
    if packed == "xz":
        return pa.PythonFile(lzma.open(file), mode="r")
    return pa.CompressedInputStream(file, packed)


def is_one_of(path: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a file has one of the suffixes and is none that Spark and others hide."""
    return suffix(path) in suffixes and os.path.basename(path)[:1] not in "._"


def _look_up_all(expanded: list[str]) -> list[File]:
    """Many files by listing their folders, which takes fewer requests than asking for each; a web
    server need not list any."""
    if is_web(expanded[0]):
        with ThreadPoolExecutor(READERS) as readers:
            there = dict(zip(expanded, readers.map(look_up, expanded), strict=True))
    else:
        folders = dict.fromkeys(map(parent, expanded))
        listed = {file.path: file for folder in folders for file in list_folder(folder)[0]}
        there = {path: listed.get(full_path(path)) for path in expanded}
    for path, file in there.items():
        if not isinstance(file, File):
            raise DataError(f"{path}: no such file")
    return [file for file in there.values() if isinstance(file, File)]


def _find(path: str, suffixes: tuple[str, ...]) -> list[File]:
    found = look_up(path)
    if isinstance(found, File):
        return [found]
    if found is not None:
        direct = [file for file in list_folder(found)[0] if is_one_of(file.path, suffixes)]
        return direct or [  # such as Hive's: `lang=en/part-0.parquet`
            file for files in walk(found) for file in files if is_one_of(file.path, suffixes)
        ]
    if any(sign in path for sign in MAGIC):
        return glob(path)
    raise DataError(f"{path}: no such file")


def _codec(mark: bytes) -> str | None:
    if mark[:3] == b"BZh" and mark[4:7] == b"1AY":
        return "bz2"
    return next((name for start, name in MARKS if mark.startswith(start)), None)


def _expand_braces(path: str) -> list[str]:
    """`a{00..02}.tar` and `a{x,y}.tar` as the paths they stand for."""
    try:
        return list(braceexpand(path, escape=False))
    except ValueError:  # a brace that stands alone
        return [path]


def _walk(path: str, seen: set[str]) -> Iterator[list[File]]:
    if storage.is_local(path):
        real = os.path.realpath(path)
        if real in seen:
            return
        seen.add(real)
    files, folders = list_folder(path)
    yield files
    for folder in folders:
        yield from _walk(folder, seen)
