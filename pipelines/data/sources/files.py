"""Fetches images that are files: those of folders, and of lists of paths below an image_root.
Stands where the download stands for rows with URLs."""

from __future__ import annotations

import re
from typing import Any

import pyarrow.fs as pafs

from caft.errors import StorageError
from pipelines import storage

# No image that is trained on comes near; read whole, it must fit in memory many times over.
MAX_IMAGE_BYTES = 256 * 2**20


def is_file(url: str) -> bool:
    """Whether a row's image is a file for `fetch_file`, rather than a download."""
    return re.match(r"(?i:https?)://", url) is None


def fetch_file(row: dict[str, Any]) -> None:
    """Set a row's `data`, or its reason; paths that lead out of their place never get here."""
    try:
        fs, inner = storage.filesystem(row["url"])
        info = fs.get_file_info(inner)
        if info.type != pafs.FileType.File:
            row |= {"reason": "missing_file", "detail": "no such file"}
        elif info.size is not None and info.size > MAX_IMAGE_BYTES:
            row |= {"reason": "too_large", "detail": f"{info.size} bytes"}
        else:
            row["data"] = storage.read_bytes(row["url"])
    except (OSError, StorageError, ValueError) as error:
        # What a remote store could not answer now, it may another time.
        reason = "missing_file" if storage.is_local(row["url"]) else "connection"
        row |= {"reason": reason, "detail": " ".join(str(error).split())[:200]}
