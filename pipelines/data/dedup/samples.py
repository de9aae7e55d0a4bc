"""Some pairs of near duplicates with both pictures, for the page: what a distance removes.
Taken while the candidates are there; the page shows them side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from pipelines import storage
from pipelines.data.dedup.pairs import Pairs
from pipelines.data.paths import ROWS_PER_CHUNK, Layout
from pipelines.data.write import read_table, write_table

PAIRS_SHOWN = 24
SIDES = ("removed", "kept")
PAIRS_SCHEMA = pa.schema(
    [
        ("bits", pa.int32()),
        ("removed_url", pa.string()),
        ("removed_image", pa.binary()),
        ("kept_url", pa.string()),
        ("kept_image", pa.binary()),
    ]
)


def pairs_path(output: str) -> str:
    return storage.join(output, "near_duplicates.parquet")


def write_samples(layout: Layout, pairs: Pairs) -> None:
    """Store PAIRS_SHOWN of the pairs (dropped rows, kept rows), spread evenly over them. A kept row
    that the dataset held before is passed over: its picture is no candidate."""
    some = np.linspace(0, len(pairs[0]) - 1, min(PAIRS_SHOWN, len(pairs[0]))).astype(int)
    rows = []
    for removed, kept in zip(*(side[some].tolist() for side in pairs), strict=True):
        one, other = _candidate(layout, removed), _candidate(layout, kept)
        if one is not None and other is not None:
            rows.append(
                {
                    "bits": (one["phash"] ^ other["phash"]).bit_count(),
                    "removed_url": one["url"],
                    "removed_image": one["image"],
                    "kept_url": other["url"],
                    "kept_image": other["image"],
                }
            )
    if rows:
        rows.sort(key=lambda row: row["bits"])
        write_table(pairs_path(layout.output), pa.Table.from_pylist(rows, PAIRS_SCHEMA))


def read_samples(output: str) -> list[dict[str, Any]]:
    """The stored pairs, those that are nearest first; none without any."""
    path = pairs_path(output)
    return read_table(path).to_pylist() if storage.exists(path) else []


def _candidate(layout: Layout, row: int) -> dict[str, Any] | None:
    chunk, place = divmod(row, ROWS_PER_CHUNK)
    path = layout.candidate(chunk)
    if not storage.exists(path):
        return None
    columns = ["url", "image", "phash"]
    table = read_table(path, columns, filters=[("place", "==", place)])
    found: list[dict[str, Any]] = table.to_pylist()
    return found[0] if found else None
