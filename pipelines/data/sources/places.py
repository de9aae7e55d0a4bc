"""Lists, matches and opens files of sources wherever fsspec reaches: local, S3, gs, hf, https.
Below `paths`; also the one place that turns an unreadable file into the line that a user gets."""

from __future__ import annotations

import io
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
from fsspec.exceptions import FSTimeoutError

from caft.errors import CAFTError, DataError, StorageError
from pipelines import storage

READERS = 16
MARK_BYTES = 8
# What a remote file is read ahead; fsspec's own 50 MB is much for the first lines of many files.
BLOCK_BYTES = 4 * 2**20
GONE = (404, 410)
WEB = re.compile(r"(?i:https?)://")
NO_ANSWER = "did not answer for {:g} s"


@dataclass(frozen=True)
class File:
    """A file of a source."""

    path: str
    bytes: int


def is_web(path: str) -> bool:
    """Whether a path is one of a web server, where `?` starts a query and each name is a file."""
    return WEB.match(path) is not None


def full_path(path: str) -> str:
    """`path` as it is from anywhere."""
    return _outer(path, *_filesystem(path))


def look_up(path: str) -> File | str | None:
    """The file at `path`, the full path of the folder there, or None.

    On a web server what ends in a slash is a folder.

    Raises:
        DataError: the place does not answer, or not to us.
    """
    fs, inner = _filesystem(path)
    if is_web(path) and path.endswith("/"):
        return _outer(path, fs, inner)
    with reading(path):
        entry = _entry(fs, inner)
    if entry is None or entry["type"] == "other":
        return None
    outer = _outer(path, fs, inner)
    return outer if entry["type"] == "directory" else File(outer, entry["size"] or 0)


def list_folder(path: str) -> tuple[list[File], list[str]]:
    """The files and the folders directly in a folder, each sorted, as full paths."""
    fs, inner = _filesystem(path)
    with reading(path):
        with _asking():
            listed = fs.ls(inner, detail=True)
        if is_web(path):  # whose pages link to themselves, in other orders
            listed = [entry for entry in listed if "?" not in entry["name"]]
        inside = [entry for entry in listed if entry["name"].rstrip("/") != inner.rstrip("/")]
        entries = _complete(fs, inside)
    folders = [entry["name"] for entry in entries if entry["type"] == "directory"]
    return _files(path, fs, entries), sorted(_outer(path, fs, name) for name in folders)


def glob(path: str) -> list[File]:
    """Files that match a pattern; `*` stays within a folder, `**` goes below it."""
    fs, inner = _filesystem(path)
    with reading(path):
        try:
            with _asking():
                found = fs.glob(inner, detail=True)
        except FileNotFoundError:  # the folder or bucket that the pattern starts with
            return []
        return _files(path, fs, _complete(fs, found.values()))


@contextmanager
def open_file(path: str) -> Iterator[tuple[pa.NativeFile, bytes]]:
    """A file from its start, and its first bytes."""
    if storage.is_local(path):
        with pa.OSFile(storage.filesystem(path)[1]) as file:
            mark = file.read(MARK_BYTES)
            file.seek(0)
            yield file, mark
        return
    fs, inner = _filesystem(path)
    with _asking():  # of a web server as one stream, since not all of them enter files
        opened = fs.open(inner, "rb", block_size=0 if is_web(path) else BLOCK_BYTES)
    with io.BufferedReader(_Stream(opened), BLOCK_BYTES) as stream:
        yield pa.PythonFile(stream, mode="r"), stream.peek(MARK_BYTES)[:MARK_BYTES]


@contextmanager
def open_random(path: str) -> Iterator[pa.NativeFile]:
    """A file that is entered anywhere, such as Parquet; S3 and local ones by Arrow's own reader."""
    if storage.is_local(path) or path.lower().startswith("s3://"):
        arrow, inner = storage.filesystem(path)
        with arrow.open_input_file(inner) as file:
            yield file
        return
    fs, inner = _filesystem(path)
    with _asking():
        opened = fs.open(inner, "rb", block_size=BLOCK_BYTES)
    with _Stream(opened) as stream:
        yield pa.PythonFile(stream, mode="r")


def read_file(path: str, max_bytes: int) -> bytes | int | None:
    """A file's bytes; how many it has where they are more than `max_bytes`; None where it is not.

    Raises:
        OSError: it cannot be read.
    """
    fs, inner = _filesystem(path)
    entry = _entry(fs, inner)
    if entry is None or entry["type"] != "file":
        return None
    if (entry["size"] or 0) > max_bytes:
        return int(entry["size"])
    with _asking():
        return bytes(fs.cat_file(inner))


def read_bytes(path: str) -> bytes:
    """A file's bytes; errors as in `reading`."""
    fs, inner = _filesystem(path)
    with reading(path), _asking():
        return bytes(fs.cat_file(inner))


@contextmanager
def reading(path: str, kind: str = "not a readable list") -> Iterator[None]:
    """Turns what goes wrong while `path` is read into a DataError of one line."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except PermissionError:
        raise DataError(f"{path}: no permission to read it; check its owner and mode") from None
    except TimeoutError as error:
        raise DataError(f"{path}: {error}; run again when its server does") from None
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: {kind}: {one_line(error)}") from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        credentials = "; check its credentials and its region" if "://" in path else ""
        if "timeout" in str(error).lower():  # botocore's, which s3fs makes an OSError
            credentials = "; run again when its server answers"
        raise DataError(f"{path}: cannot be read: {one_line(error)}{credentials}") from None


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


class _Stream(io.RawIOBase):
    """A file of fsspec, whatever it raises as an OSError."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view, filled = memoryview(buffer), 0
        with _asking():
            while filled < len(view) and (data := self._file.read(len(view) - filled)):
                view[filled : filled + len(data)] = data
                filled += len(data)
        return filled

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return int(self._file.tell())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with _asking():
            return int(self._file.seek(offset, whence))

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _filesystem(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    if "://" in path.rpartition("::")[0]:
        raise StorageError(f"{path}: files inside of another file are not read; unpack it")
    return storage.fsspec_filesystem(path)


def _outer(path: str, fs: fsspec.AbstractFileSystem, name: str) -> str:
    """`name`, which `fs` gave for something at or below `path`, as a path from anywhere."""
    if storage.is_local(path):
        return name
    chain, mark, _ = path.rpartition("::")
    return f"{chain}{mark}{fs.unstrip_protocol(name)}"


@contextmanager
def _asking() -> Iterator[None]:
    """Makes each filesystem's own errors (botocore's, aiohttp's, ...) an OSError."""
    try:
        yield
    except FSTimeoutError:  # without words
        raise TimeoutError(NO_ANSWER.format(storage.REQUEST_S)) from None
    except (CAFTError, OSError, pa.ArrowInvalid):
        raise
    except Exception as error:
        if "Timeout" in type(error).__name__:
            raise TimeoutError(NO_ANSWER.format(storage.REQUEST_S)) from None
        raise OSError(f"{type(error).__name__}: {error}") from error


def _entry(fs: fsspec.AbstractFileSystem, name: str) -> dict[str, Any] | None:
    try:
        with _asking():
            return dict(fs.info(name))
    except FileNotFoundError as error:
        # aiohttp's errors all come as this one.
        why = error.__cause__
        if why is None or not is_web(name) or getattr(why, "status", None) in GONE:
            return None
        raise OSError(one_line(why)) from None


def _complete(
    fs: fsspec.AbstractFileSystem, entries: Iterable[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Entries as they are, with what links lead to and the sizes that web servers do not list."""

    def one(entry: dict[str, Any]) -> dict[str, Any] | None:
        is_known = entry["type"] == "directory" or entry["size"] is not None
        return entry if is_known and not entry.get("islink") else _entry(fs, entry["name"])

    with ThreadPoolExecutor(READERS) as readers:
        return [entry for entry in readers.map(one, entries) if entry is not None]


def _files(
    path: str, fs: fsspec.AbstractFileSystem, entries: Iterable[dict[str, Any]]
) -> list[File]:
    found = [entry for entry in entries if entry["type"] == "file"]
    files = [File(_outer(path, fs, entry["name"]), entry["size"] or 0) for entry in found]
    return sorted(files, key=lambda file: file.path)
