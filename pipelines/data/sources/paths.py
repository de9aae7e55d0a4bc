"""Finds the files of a source: a file, a folder, a glob or a brace pattern, wherever they lie.
Also the one place that turns an unreadable file into the line that a user gets."""

from __future__ import annotations

import fnmatch
import lzma
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.fs as pafs

from caft.errors import DataError
from pipelines import storage

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


@dataclass(frozen=True)
class File:
    """A file of a source."""

    path: str
    bytes: int


def suffix(path: str) -> str:
    """The file's suffix in lower case, without that of a compression: `.csv` of `a.CSV.gz`."""
    name = path.lower()
    ending = os.path.splitext(name)[1]
    if ending in PACKED:
        ending = os.path.splitext(name.removesuffix(ending))[1]
    return ending


def codec(path: str) -> str | None:
    """How a file is compressed, by its first bytes."""
    fs, inner = storage.filesystem(path)
    with reading(path), fs.open_input_file(inner) as file:
        return _codec(file.read(8))


def is_folder(path: str) -> bool:
    fs, inner = storage.filesystem(path)
    with reading(path):
        return fs.get_file_info(inner).type == pafs.FileType.Directory


def find_files(path: str, suffixes: tuple[str, ...] = ()) -> list[File]:
    """The files that `path` names, in order; of a folder those directly in it with a suffix.

    Raises:
        DataError: a file or folder that is not there, or a pattern that matches nothing.
    """
    expanded = _expand_braces(path)
    if len(expanded) > 1 and not any(sign in path for sign in "*?["):
        return _look_up(expanded)
    found = [file for one in expanded for file in _find(one, suffixes)]
    if not found:
        wanted = f" of {', '.join(suffixes)}" if suffixes else ""
        raise DataError(f"{path}: no file{wanted} there; give the path of one")
    return found


def list_folder(path: str) -> tuple[list[File], list[str]]:
    """The files and the folders directly in a folder, each sorted, as full paths."""
    fs, inner = storage.filesystem(path)
    with reading(path):
        infos = fs.get_file_info(pafs.FileSelector(inner))
    infos.sort(key=lambda info: info.path)
    prefix = storage.outer_prefix(path)
    files = [
        File(prefix + info.path, info.size) for info in infos if info.type == pafs.FileType.File
    ]
    folders = [prefix + info.path for info in infos if info.type == pafs.FileType.Directory]
    return files, folders


def walk(path: str) -> Iterator[list[File]]:
    """The files of a folder and of all below it, one list per folder, in a fixed order."""
    yield from _walk(path, set())


def full_path(path: str) -> str:
    """`path` as it is from anywhere."""
    return storage.outer_prefix(path) + storage.filesystem(path)[1]


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
    fs, inner = storage.filesystem(path)
    with reading(path), fs.open_input_file(inner) as file:
        packed = _codec(file.read(8))
        file.seek(0)
        if packed is None:
            yield file
            return
        with unpacked(file, packed, path) as stream:
            yield stream


def unpacked(file: pa.NativeFile, packed: str, path: str) -> pa.NativeFile:
    """A compressed file as a stream of what it holds."""
    if packed == "zip":
        raise DataError(f"{path}: a zip archive; unpack it, or pack its files with gzip or zstd")
    if packed == "xz":
        return pa.PythonFile(lzma.open(file), mode="r")
    return pa.CompressedInputStream(file, packed)


@contextmanager
def reading(path: str, kind: str = "not a readable list") -> Iterator[None]:
    """Turns what goes wrong while `path` is read into a DataError of one line."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except PermissionError:
        raise DataError(f"{path}: no permission to read it; check its owner and mode") from None
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: {kind}: {one_line(error)}") from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        credentials = "; check its credentials and its region" if "://" in path else ""
        raise DataError(f"{path}: cannot be read: {one_line(error)}{credentials}") from None


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _look_up(expanded: list[str]) -> list[File]:
    """Many files by listing their folders, which takes fewer requests than asking for each."""
    listed = {folder: list_folder(folder)[0] for folder in dict.fromkeys(map(parent, expanded))}
    there = {file.path: file for files in listed.values() for file in files}
    for path in expanded:
        if full_path(path) not in there:
            raise DataError(f"{path}: no such file")
    return [there[full_path(path)] for path in expanded]


def _find(path: str, suffixes: tuple[str, ...]) -> list[File]:
    fs, inner = storage.filesystem(path)
    with reading(path):
        info = fs.get_file_info(inner)
    if info.type == pafs.FileType.File:
        return [File(full_path(path), info.size)]
    if info.type == pafs.FileType.Directory:
        direct = [file for file in list_folder(path)[0] if is_one_of(file.path, suffixes)]
        return direct or [  # such as Hive's: `lang=en/part-0.parquet`
            file for files in walk(path) for file in files if is_one_of(file.path, suffixes)
        ]
    if any(sign in path for sign in "*?["):
        return _glob(path, inner)
    raise DataError(f"{path}: no such file")


def is_one_of(path: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a file has one of the suffixes and is none that Spark and others hide."""
    return suffix(path) in suffixes and os.path.basename(path)[:1] not in "._"


def _codec(mark: bytes) -> str | None:
    if mark[:3] == b"BZh" and mark[4:7] == b"1AY":
        return "bz2"
    return next((name for start, name in MARKS if mark.startswith(start)), None)


def _glob(path: str, inner: str) -> list[File]:
    """Files that match a pattern; `*` stays within a folder, `**` goes below it."""
    base = re.split(r"[*?\[]", inner)[0].rsplit("/", 1)[0]
    fs, _ = storage.filesystem(path)
    with reading(path):
        infos = fs.get_file_info(pafs.FileSelector(base, allow_not_found=True, recursive=True))
    pattern, prefix = re.compile(_glob_expression(inner)), storage.outer_prefix(path)
    return sorted(
        (
            File(prefix + info.path, info.size)
            for info in infos
            if info.type == pafs.FileType.File and pattern.fullmatch(info.path)
        ),
        key=lambda file: file.path,
    )


def _glob_expression(pattern: str) -> str:
    anywhere, inside = r"(?:.*/)?", "[^/]*"
    parts = []
    for part in re.split(r"(\*\*/|\*|\?|\[[^\]]*\])", pattern):
        if part in ("**/", "*", "?"):
            parts.append({"**/": anywhere, "*": inside, "?": "[^/]"}[part])
        elif part.startswith("[") and part.endswith("]"):
            parts.append(fnmatch.translate(part).removeprefix("(?s:").removesuffix(")\\Z"))
        else:
            parts.append(re.escape(part))
    return "".join(parts)


def _expand_braces(path: str) -> list[str]:
    """`a{00..02}.tar` and `a{x,y}.tar` as the paths they stand for."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", path)
    if match is None:
        return [path]
    first, last, listed = match.groups()
    if listed is not None:
        values = listed.split(",")
    else:
        values = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    start, end = path[: match.start()], path[match.end() :]
    return [expanded for value in values for expanded in _expand_braces(f"{start}{value}{end}")]


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
