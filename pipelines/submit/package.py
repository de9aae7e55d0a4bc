"""What of a folder goes to a cluster with a job, as one zip file.
Between submit and Ray's job server, which unpacks it on every node."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from caft.errors import ConfigError

FOLDERS = ("runs", "build", "dist", "__pycache__", "node_modules", "*.egg-info")
FILES = ("*.parquet", "*.tar", "*.zip", "*.db", "*.pyc", "*.pem", "*.key")
MAX_FILE_BYTES = 20 * 2**20
MAX_BYTES = 100 * 2**20  # every node unpacks it before a job starts
MADE_AT = (1980, 1, 1, 0, 0, 0)  # the oldest time that a zip file can hold


@dataclass(frozen=True)
class Package:
    """A zip file.

    Attributes:
        files: how many it holds.
        size_bytes: of the zip file.
        left_out: files above MAX_FILE_BYTES, relative to the folder.
    """

    path: Path
    files: int
    size_bytes: int
    left_out: tuple[str, ...]


def pack(folder: Path, into: Path) -> Package:
    """Write `package.zip` into `into`, with what a job needs of `folder`.

    Left out: hidden files and folders (.git, .venv, .env), outputs, caches, virtual environments,
    datasets, keys, links, and files above MAX_FILE_BYTES.

    Raises:
        ConfigError: what is left is above MAX_BYTES.
    """
    kept: list[Path] = []
    left_out: list[str] = []
    for root, folders, names in os.walk(folder):
        here = Path(root)
        folders[:] = sorted(name for name in folders if not _is_data(here / name, FOLDERS))
        for name in sorted(names):
            path = here / name
            if _is_data(path, FILES):
                continue
            if path.stat().st_size > MAX_FILE_BYTES:
                left_out.append(str(path.relative_to(folder)))
            else:
                kept.append(path)
    _require_small(folder, kept)
    package = into / "package.zip"
    with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in kept:
            entry = zipfile.ZipInfo(str(path.relative_to(folder)), MADE_AT)
            entry.external_attr = (path.stat().st_mode & 0o777) << 16
            archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return Package(package, len(kept), package.stat().st_size, tuple(left_out))


def _is_data(path: Path, patterns: tuple[str, ...]) -> bool:
    return (
        path.name.startswith(".")
        or any(fnmatch(path.name, pattern) for pattern in patterns)
        or path.is_symlink()
        or (path / "pyvenv.cfg").exists()
    )


def _require_small(folder: Path, kept: list[Path]) -> None:
    total = 0
    by_folder: dict[str, int] = {}
    for path in kept:
        size, top = path.stat().st_size, path.relative_to(folder).parts[0]
        total += size
        by_folder[top] = by_folder.get(top, 0) + size
    if total > MAX_BYTES:
        largest = max(by_folder, key=lambda name: by_folder[name])
        raise ConfigError(
            f"{folder}: {total / 2**20:,.0f} MiB would be copied to every node, above "
            f"{MAX_BYTES // 2**20}; move {largest} ({by_folder[largest] / 2**20:,.0f} MiB) "
            "elsewhere, or submit from the folder of the code"
        )
