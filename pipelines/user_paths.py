"""Paths that users name: what a stage cannot use is refused before it starts.
Stages pass every path of their configuration through here, then read and write by storage."""

from __future__ import annotations

import os
import shutil
import socket
from functools import cache
from pathlib import Path
from urllib.parse import urlparse

from caft.errors import ConfigError, StorageError
from pipelines import storage

WORKING_COPIES = "runtime_resources"  # Ray's name of the folder they lie in


def usable_path(path: str, field: str, folder: bool = False) -> str:
    """`path` made absolute, `~` expanded. What a stage can not use is refused here, before it
    starts.

    Args:
        folder: whether it is to be a folder.

    Raises:
        ConfigError: an empty path, one below a file, or a relative one inside a Ray job, which
            runs in a temporary copy of the working directory: its outputs would vanish with it.
        StorageError: a path on an S3 endpoint where nobody answers. Later, in the middle of work,
            it would be given minutes to come back.
    """
    if not path.strip():
        raise ConfigError(f"{field}: is empty; give a path")
    path = storage.lower_scheme(path)
    require_answer(path)
    if not storage.is_local(path):
        return path
    path = storage.expanded(path)
    if path.startswith("~"):
        raise ConfigError(f"{field}: '{path}': there is no such home; give an absolute path")
    _require_no_file(path.removeprefix("file://"), field, folder)
    if os.path.isabs(path.removeprefix("file://")):
        return path
    if in_ray_job():
        raise ConfigError(
            f"{field}: '{path}' is relative; a Ray job needs an absolute or s3:// path"
        )
    return os.path.abspath(path)


def in_ray_job() -> bool:
    """Whether the working directory is a temporary copy, which vanishes with its job."""
    return bool(os.environ.get("RAY_JOB_SUBMISSION_ID")) or WORKING_COPIES in Path.cwd().parts


def _require_no_file(path: str, field: str, folder: bool) -> None:
    """Refuse what is below a file, and what is one where a folder is due."""
    whole = Path(os.path.abspath(path))
    for part in (*([whole] if folder else []), *whole.parents):
        if os.path.exists(part) and not os.path.isdir(part):
            raise ConfigError(f"{field}: {path}: {part} is a file, not a folder; name another path")


def require_answer(path: str) -> None:
    """Raises StorageError where `path` is on an S3 endpoint at which nobody answers."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if endpoint and storage.lower_scheme(path).startswith("s3://"):
        _connect_once(endpoint)


@cache
def _connect_once(endpoint: str) -> None:
    parsed = urlparse(endpoint)
    port = parsed.port or (443 if parsed.scheme == "https" else 80)
    try:
        socket.create_connection((parsed.hostname or "", port), storage.CONNECT_S).close()
    except OSError as error:
        raise StorageError(
            f"AWS_ENDPOINT_URL {endpoint}: nobody answers there ({error.strerror or error}); start "
            "the server or mend the address"
        ) from None


def check_space(path: str, needed_bytes: int) -> None:
    """Refuse work that cannot fit on the local disk of `path`; other places are not checked.

    Raises:
        StorageError: fewer than `needed_bytes` are free.
    """
    if not storage.is_local(path):
        return
    folder = Path(path.removeprefix("file://"))
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise StorageError(
            f"{path}: {free / 2**20:,.0f} MiB free, about {needed_bytes / 2**20:,.0f} MiB needed; "
            "free some or choose another output"
        )
