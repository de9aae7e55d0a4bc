"""Fetches images that are files: those of folders, and of lists of paths below an image_root.
Stands where the download stands for rows with URLs."""

from __future__ import annotations

from typing import Any

from caft.errors import StorageError
from pipelines import storage
from pipelines.data.sources.places import is_web, read_file

# No image that is trained on comes near; read whole, it must fit in memory many times over.
MAX_IMAGE_BYTES = 256 * 2**20


def is_file(url: str) -> bool:
    """Whether a row's image is a file for `fetch_file`, rather than a download."""
    return not is_web(url)


def fetch_file(row: dict[str, Any]) -> None:
    """Set a row's `data`, or its reason; paths that lead out of their place never get here."""
    try:
        found = read_file(row["url"], MAX_IMAGE_BYTES)
        if found is None:
            row |= {"reason": "missing_file", "detail": "no such file"}
        elif isinstance(found, int):
            row |= {"reason": "too_large", "detail": f"{found} bytes"}
        else:
            row["data"] = found
    except (OSError, StorageError, ValueError) as error:
        # What a remote store could not answer now, it may another time.
        reason = "missing_file" if storage.is_local(row["url"]) else "connection"
        row |= {"reason": reason, "detail": " ".join(str(error).split())[:200]}
