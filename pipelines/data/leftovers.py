"""Deletes what an ended run leaves behind: files not whole, and those that no manifest lists.
Every run begins with it, and ends with it once its manifest is written."""

from __future__ import annotations

import re
import time
from typing import Any

from pipelines import storage
from pipelines.data.layout import Layout

PART = re.compile(r"part(?:-r(\d+))?-\d{5,}(?:-rest)?\.parquet")
SETTLE_S, LOOK_EVERY_S = 10.0, 0.2


def delete_temporaries(layout: Layout) -> None:
    """Delete files that are not whole, of processes that ended while they wrote them."""
    for path in _temporaries(layout):
        storage.delete_file(path)


def await_temporaries(layout: Layout) -> None:
    """As `delete_temporaries`, once tasks that were cancelled had time to end by themselves."""
    deadline = time.monotonic() + SETTLE_S
    while _temporaries(layout) and time.monotonic() < deadline:
        time.sleep(LOOK_EVERY_S)
    delete_temporaries(layout)


def delete_leftovers(output: str, manifest: dict[str, Any]) -> None:
    """Delete working files, and parts that a retry replaced; a retry not yet finished keeps its."""
    for generation in range(manifest["generation"] + 1):
        storage.delete_folder(Layout(output, generation).work)
    delete_temporaries(Layout(output, manifest["generation"]))
    for name in unlisted_parts(output, manifest):
        storage.delete_file(storage.join(output, name))


def unlisted_parts(output: str, manifest: dict[str, Any]) -> list[str]:
    """Names of parts of finished generations that the manifest does not list."""
    listed = {entry["name"] for entry in [*manifest["files"], *manifest["rejects"]]}
    names = storage.list_files(output, ".parquet")
    names += [f"rejects/{n}" for n in storage.list_files(f"{output}/rejects", ".parquet")]
    found = ((name, PART.fullmatch(name.removeprefix("rejects/"))) for name in names)
    return [
        name
        for name, part in found
        if part and int(part[1] or 0) <= manifest["generation"] and name not in listed
    ]


def _temporaries(layout: Layout) -> list[str]:
    if not storage.is_local(layout.output):
        return []  # a remote store shows a file once it is whole
    folders = [layout.output, f"{layout.output}/rejects", layout.plan, layout.work]
    return [
        storage.join(folder, name)
        for folder in folders
        for name in storage.list_files(folder, f".{storage.TEMPORARY}")
    ]
