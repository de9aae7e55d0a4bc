"""What of a folder goes to a cluster with a job, as one zip file.
Between submit and Ray's job server, which unpacks it on every node."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import NoReturn

from caft.errors import ConfigError
from caft.secrets import is_secret_file
from pipelines import git

FOLDERS = ("runs", "build", "dist", "node_modules", "*.egg-info")
FILES = ("*.parquet", "*.tar", "*.zip", "*.db")
NOT_NAMED = (".git", "__pycache__", "*.pyc")  # left out of every package
MAX_FILE_BYTES = 20 * 2**20
MAX_BYTES = 100 * 2**20  # every node unpacks it before a job starts
MADE_AT = (1980, 1, 1, 0, 0, 0)  # the oldest time that a zip file can hold
NAMED = 6  # of what was left out for one reason


@dataclass
class Package:
    """A zip file.

    Attributes:
        folder: of which it is made.
        files: what it holds, relative to the folder.
        left_out: reason -> files and folders (these with a slash), relative to the folder.
    """

    folder: Path
    path: Path
    files: list[Path] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def described(self) -> list[str]:
        """Lines that say how large it is and what it lacks."""
        size_mib = self.path.stat().st_size / 2**20
        lines = [f"{len(self.files):,} files of {self.folder}, {size_mib:.1f} MiB"]
        for reason, names in self.left_out.items():
            more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
            lines.append(f"left out, {reason}: {', '.join(sorted(names)[:NAMED])}{more}")
        return lines


def pack(folder: Path, into: Path) -> Package:
    """Write `package.zip` into `into`, with what a job needs of `folder`: regular files which git
    does not ignore, without keys and passwords, outputs, hidden files, datasets, links, and files
    above MAX_FILE_BYTES.

    Raises:
        ConfigError: a file cannot be read, or what is left is above MAX_BYTES.
    """
    package = Package(folder, into / "package.zip")
    found = dict(_walk(folder, package))
    _require_small(folder, {path: status.st_size for path, status in found.items()})
    with zipfile.ZipFile(package.path, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, status in found.items():
            entry = zipfile.ZipInfo(str(path), MADE_AT)
            entry.external_attr = (status.st_mode & 0o777) << 16
            try:
                data = (folder / path).read_bytes()
            except OSError as error:
                _refuse(error)
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED)
    package.files = list(found)
    return package


def _walk(folder: Path, package: Package) -> Iterator[tuple[Path, os.stat_result]]:
    """Files to pack, relative to the folder, in a set order; notes what is left out."""
    ignored = git.ignored(folder)
    if ignored is None:
        package.left_out["ignored by git"] = ["nothing, because git cannot be run here"]
    for root, folders, names in os.walk(folder, onerror=_refuse):
        here = Path(root).relative_to(folder)
        for name in sorted([*folders, *names]):
            path = here / name
            is_folder = name in folders
            shown = f"{path}/" if is_folder else str(path)
            try:
                status = os.lstat(folder / path)
            except FileNotFoundError:  # deleted by someone else meanwhile
                continue
            reason = (
                "ignored by git" if shown in (ignored or ()) else _why_not(folder / path, status)
            )
            if reason and is_folder:
                folders.remove(name)
            if reason and not any(fnmatch(name, mask) for mask in NOT_NAMED):
                package.left_out.setdefault(reason, []).append(shown)
            if not (reason or is_folder):
                yield path, status
        folders.sort()


def _why_not(path: Path, status: os.stat_result) -> str | None:
    """Why a file or folder stays here; None of one that is packed."""
    name, is_folder = path.name, stat.S_ISDIR(status.st_mode)
    if stat.S_ISLNK(status.st_mode):
        return "links"
    if not (is_folder or stat.S_ISREG(status.st_mode)):
        return "no regular files"
    if not is_folder and is_secret_file(name):
        return "keys and passwords"
    if name.startswith("."):
        return "hidden"
    if any(fnmatch(name, mask) for mask in (*(FOLDERS if is_folder else FILES), *NOT_NAMED)):
        return "outputs and data"
    if is_folder and (path / "pyvenv.cfg").exists():
        return "virtual environments"
    if not is_folder and status.st_size > MAX_FILE_BYTES:
        return f"above {MAX_FILE_BYTES / 2**20:g} MiB"
    try:
        os.fsencode(name).decode()
    except UnicodeDecodeError:
        return "names that are no UTF-8"
    return None


def _refuse(error: OSError) -> NoReturn:
    raise ConfigError(
        f"{error.filename}: cannot be packed for the job: {error.strerror}; let git ignore it, or "
        "make it readable"
    ) from None


def _require_small(folder: Path, kept: dict[Path, int]) -> None:
    by_top: dict[str, int] = {}
    for path, size in kept.items():
        by_top[path.parts[0]] = by_top.get(path.parts[0], 0) + size
    total = sum(by_top.values())
    if total > MAX_BYTES:
        largest = max(by_top, key=lambda name: by_top[name])
        raise ConfigError(
            f"{folder}: {total / 2**20:,.0f} MiB would be copied to every node, above "
            f"{MAX_BYTES // 2**20}; move {largest} ({by_top[largest] / 2**20:,.0f} MiB) "
            "elsewhere, or submit from the folder of the code"
        )
