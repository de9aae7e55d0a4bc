"""Local paths, s3:// paths and whatever else fsspec opens behind one set of functions.
The only module that knows about filesystems; every stage reads and writes through it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, wraps
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import urlparse

import fsspec
import fsspec.core
import pyarrow.fs as pafs

from caft.documents import parse_json
from caft.durable import sync
from caft.errors import StorageError

TEMPORARY = "tmp"  # ends the names of files that are not whole yet
COPY_BYTES = 8 * 2**20
# What accepts a request and then says nothing is given up within two minutes: five times 15 s, and
# 15 s between them at most. A store that refuses for now is asked for two minutes, by `retried`.
S3_TRIES = 5
S3_WAITS_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 20.0, 20.0, 20.0, 20.0, 20.0)
S3_TRANSIENT = re.compile(
    r"AWS Error (INTERNAL_FAILURE|SLOW_DOWN|THROTTLING|SERVICE_UNAVAILABLE|REQUEST_TIMEOUT)"
    r"|HTTP status (408|425|429|5\d\d)\b|RequestTimeout"
)
CONNECT_S, REQUEST_S = 10.0, 15.0


def filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of `path` and the path inside it. S3 takes its endpoint from
    AWS_ENDPOINT_URL and its credentials from AWS's usual environment variables.

    Raises:
        StorageError: a protocol that is not known, or whose package is not installed.
    """
    lowered = lower_scheme(path)
    if is_local(path):
        return pafs.LocalFileSystem(), os.path.abspath(expanded(lowered).removeprefix("file://"))
    if lowered.startswith("s3://"):
        return _s3(*_account()), lowered.removeprefix("s3://")
    opened, inner = fsspec_filesystem(path)
    return pafs.PyFileSystem(pafs.FSSpecHandler(opened)), inner


def fsspec_filesystem(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """fsspec's filesystem of `path` and the path inside it; environment and errors as in
    `filesystem`. What it lists is never remembered."""
    if is_local(path):
        return fsspec.filesystem("file"), filesystem(path)[1]
    lowered = lower_scheme(path)
    protocol = lowered.partition("://")[0]
    try:
        if protocol in ("s3", "http", "https"):
            opened = _fsspec(protocol, os.getpid(), *_account())
            return opened, opened._strip_protocol(lowered)
        return fsspec.core.url_to_fs(lowered, use_listings_cache=False)
    except ImportError as error:
        raise StorageError(f"{path}: a package for it is not installed: {error}") from None
    except ValueError as error:
        raise StorageError(f"{path}: cannot be opened: {error}") from None


def is_local(path: str) -> bool:
    return re.match(r"(?!(?i:file)://)[A-Za-z][A-Za-z0-9+.-]*(://|::)", path) is None


def expanded(path: str) -> str:
    """The path with its `~`, if it begins with one, as a home."""
    return os.path.expanduser(path) if path.startswith("~") else path


def lower_scheme(path: str) -> str:
    """`S3://Bucket/Key` as `s3://Bucket/Key`: schemes are the same in both cases."""
    scheme, mark, rest = path.partition("://")
    return f"{scheme.lower()}{mark}{rest}" if mark and "/" not in scheme else path


def _account() -> tuple[str | None, ...]:
    """What the environment names for S3."""
    return tuple(map(os.environ.get, ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_PROFILE")))


@cache
def _fsspec(
    protocol: str, _pid: int, endpoint: str | None, _key_id: str | None, _profile: str | None
) -> fsspec.AbstractFileSystem:
    """One for all threads of a process; fsspec alone would connect anew for each of them."""
    options: dict[str, Any]
    if protocol == "s3":
        options = {"endpoint_url": endpoint, "config_kwargs": botocore_limits()}
    else:
        from aiohttp import ClientTimeout

        # aiohttp's own limit is five minutes for a file, however large.
        limit = ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=REQUEST_S)
        options = {"client_kwargs": {"timeout": limit}}
    opened = fsspec.filesystem(
        protocol, use_listings_cache=False, skip_instance_cache=True, **options
    )
    opened.retries = 1  # s3fs' own, beside those of botocore below it
    return opened


def botocore_limits() -> dict[str, Any]:
    """Of a client of botocore, as its Config takes them."""
    retries = {"max_attempts": S3_TRIES, "mode": "standard"}
    return {"retries": retries, "connect_timeout": CONNECT_S, "read_timeout": REQUEST_S}


@cache
def _s3(endpoint: str | None, _key_id: str | None, _profile: str | None) -> pafs.S3FileSystem:
    """One connection pool per endpoint and account, which the environment names."""
    options: dict[str, Any] = {
        "retry_strategy": pafs.AwsStandardS3RetryStrategy(max_attempts=S3_TRIES),
        "connect_timeout": CONNECT_S,
        "request_timeout": REQUEST_S,
    }
    if endpoint:
        parsed = urlparse(endpoint)
        options |= {"endpoint_override": parsed.netloc, "scheme": parsed.scheme}
    return pafs.S3FileSystem(allow_bucket_creation=True, **options)


Function = TypeVar("Function", bound=Callable[..., Any])


def retried(function: Function) -> Function:
    """`function`, of a path, called again where S3 could not answer: Arrow itself gives up a small
    read whose refusal is longer than what was to be read."""

    @wraps(function)
    def call(path: str, *args: Any, **options: Any) -> Any:
        for wait_s in S3_WAITS_S:
            try:
                return function(path, *args, **options)
            except StorageError as error:
                if not S3_TRANSIENT.search(str(error)):
                    raise
            time.sleep(wait_s * random.uniform(0.5, 1.5))
        return function(path, *args, **options)

    return cast(Function, call)


def join(root: str, *parts: str) -> str:
    return "/".join([root.rstrip("/"), *parts])


@retried
def exists(path: str) -> bool:
    fs, inner = filesystem(path)
    with reading(path):
        return fs.get_file_info(inner).type != pafs.FileType.NotFound


@retried
def size_bytes(path: str) -> int | None:
    """A file's size; None if there is no such file."""
    fs, inner = filesystem(path)
    with reading(path):
        return fs.get_file_info(inner).size


@retried
def read_bytes(path: str) -> bytes:
    """Raises StorageError when there is no such file or it cannot be read."""
    fs, inner = filesystem(path)
    with reading(path), fs.open_input_stream(inner, compression=None) as stream:
        return stream.read()


@retried
def read_from(path: str, start: int) -> bytes:
    """A file's bytes from `start` on. Raises StorageError as `read_bytes`."""
    fs, inner = filesystem(path)
    with reading(path), fs.open_input_file(inner) as file:
        file.seek(start)
        return file.read()


@retried
def sha256(path: str) -> str:
    """Hex digest of a file, read piece by piece. Raises StorageError as `read_bytes`."""
    fs, inner = filesystem(path)
    digest = hashlib.sha256()
    with reading(path), fs.open_input_stream(inner, compression=None) as stream:
        while piece := stream.read(COPY_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def write_bytes(path: str, data: bytes) -> None:
    """Write a whole file or nothing: readers never see a part of it.

    Raises:
        StorageError: no space left, no permission, or an unreachable bucket.
    """
    with staged(path) as file:
        file.write_bytes(data)


@contextmanager
def staged(path: str) -> Iterator[Path]:
    """A local file to write into, moved or uploaded to `path` when the block ends without error.

    Raises:
        StorageError: as `write_bytes`.
    """
    fs, inner = filesystem(path)
    local = isinstance(fs, pafs.LocalFileSystem)
    folder, name = os.path.split(inner)
    if not local:
        folder = tempfile.gettempdir()
    file = Path(folder, f".{name}.{uuid.uuid4().hex[:12]}.{TEMPORARY}")
    try:
        os.makedirs(folder, exist_ok=True)
        yield file
        if local:
            sync(file)
            os.replace(file, inner)
            sync(Path(folder or "."))  # a rename is on the disk once its folder is
        else:
            _send(path, file)
    except OSError as error:
        raise write_error(path, error) from None
    finally:
        file.unlink(missing_ok=True)


def upload(file: Path, path: str) -> None:
    """Copy a local file to `path`. Raises StorageError as `write_bytes`."""
    _send(path, file)


@retried
def _send(path: str, file: Path) -> None:
    """All of a file, from its beginning at each try: a store shows it once it is complete."""
    fs, inner = filesystem(path)
    try:
        with open(file, "rb") as source, fs.open_output_stream(inner, compression=None) as stream:
            shutil.copyfileobj(source, stream, COPY_BYTES)
    except OSError as error:
        raise write_error(path, error) from None


def write_error(path: str, error: OSError) -> StorageError:
    """The one line a user gets for a failed write."""
    if error.errno == errno.EROFS:
        return StorageError(
            f"{path}: the disk can only be read; name another output, or mount it for writing"
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No space left" in str(error):
        return StorageError(f"{path}: no space left on the device; free some and run again")
    return StorageError(f"{path}: cannot be written: {error}")


def read_json(path: str) -> Any:
    return parse_json(read_bytes(path), path, StorageError)


def write_json(path: str, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def list_files(path: str, suffix: str = "") -> list[str]:
    """Sorted names of the files directly in a folder; empty when there is no such folder."""
    return sorted(name for name in file_sizes(path) if name.endswith(suffix))


@retried
def file_sizes(path: str) -> dict[str, int]:
    """Bytes of each file directly in a folder, by name; empty when there is no such folder."""
    fs, inner = filesystem(path)
    with reading(path):
        infos = fs.get_file_info(pafs.FileSelector(inner, allow_not_found=True))
    return {info.base_name: info.size for info in infos if info.type == pafs.FileType.File}


@retried
def list_folders(path: str) -> list[str]:
    """Sorted names of the folders directly in a folder; empty when there is no such folder."""
    fs, inner = filesystem(path)
    with reading(path):
        infos = fs.get_file_info(pafs.FileSelector(inner, allow_not_found=True))
    return sorted(info.base_name for info in infos if info.type == pafs.FileType.Directory)


@retried
def delete_file(path: str) -> None:
    """Delete a file if it is there."""
    fs, inner = filesystem(path)
    with reading(path, "deleted"), suppress(FileNotFoundError):
        if fs.get_file_info(inner).is_file:
            fs.delete_file(inner)


@retried
def delete_folder(path: str) -> None:
    fs, inner = filesystem(path)
    with reading(path, "deleted"), suppress(FileNotFoundError):
        if exists(path):
            fs.delete_dir(inner)


@contextmanager
def opened(path: str) -> Iterator[Path]:
    """The file or folder at `path`, or a local copy of a remote one for as long as the block runs.

    Raises:
        StorageError: nothing is there, or it cannot be read.
    """
    if is_local(path):
        yield Path(path.removeprefix("file://"))
        return
    fs, inner = filesystem(path)
    with tempfile.TemporaryDirectory(prefix="caft-") as folder:
        target = Path(folder, Path(inner).name)
        with reading(path):
            if fs.get_file_info(inner).type == pafs.FileType.Directory:
                target.mkdir()  # Arrow makes the folders in it alone
            pafs.copy_files(inner, str(target), source_filesystem=fs)
        yield target


@contextmanager
def reading(path: str, what: str = "read") -> Iterator[None]:
    """Makes what a filesystem raises the one line that a user gets."""
    try:
        yield
    except FileNotFoundError:
        raise StorageError(f"{path}: no such file") from None
    except OSError as error:
        raise StorageError(f"{path}: cannot be {what}: {error}") from None
