"""What git knows of a folder: its revision, and which files it ignores.
Asked by tracking for the code that runs, and by submit for what goes to a cluster."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

REVISION = "CAFT_GIT_REVISION"  # of code that came without its repository: in a job, in an image
WITHIN_S = 60.0


def revision(folder: Path) -> str | None:
    """The checkout's commit, with + where files differ from it; None outside of git."""
    described = _git(["describe", "--always", "--exclude=*", "--dirty=+", "--abbrev=12"], folder)
    return described.decode().strip() if described else None


def ignored(folder: Path) -> set[str] | None:
    """Files, and folders with a slash, that .gitignore names, in a repository or outside of one;
    None where git cannot be run."""
    ask = ["ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--directory"]
    listed = _git(ask, folder)
    if listed is None:
        with tempfile.TemporaryDirectory() as empty:
            _git(["init", "--quiet", "--bare", empty], folder)
            listed = _git([f"--git-dir={empty}", f"--work-tree={folder}", *ask], folder)
    return None if listed is None else {os.fsdecode(name) for name in listed.split(b"\0") if name}


def _git(arguments: list[str], folder: Path) -> bytes | None:
    """What git prints; None where it fails or is not installed."""
    try:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, check=True, timeout=WITHIN_S
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
