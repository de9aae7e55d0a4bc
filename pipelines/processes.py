"""Which process a number means: numbers are given again once their process has ended.
Asked before a process is ended, and before what it owned is taken over."""

from __future__ import annotations

from pathlib import Path


def start_time(pid: int) -> int:
    """The kernel's start time of a process, or 0 when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0
    return 0 if fields[0] == "Z" else int(fields[19])
