"""What looks cost the duplicate passes: memory, bytes and time of the last pass, by its steps.

Rows have random hashes, of which one in fifty is near another; these two have the looks of a
photograph and of the same encoded again. All steps run on one core. The columns for 30 million and
a billion rows are extrapolated in proportion.

    python benchmarks/look_passes.py --rows 1000000
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.billion_rows import inline_tasks
from benchmarks.near_duplicates import encoded, photographs, seen
from pipelines.data.dedup import index, similar
from pipelines.data.dedup.index import INDEX_SCHEMA, gathered_indices
from pipelines.data.dedup.similar import (
    LEAST_HASH_PAIRS,
    LOOKS_AT_A_TIME,
    MOST_HASH_PAIRS,
    TASKS,
)
from pipelines.data.images.look import LOOK_BYTES
from pipelines.data.paths import Layout
from pipelines.data.write import read_table, write_table

CHUNK_ROWS, EVERY, DISTANCE = 10_000, 50, 2
TARGETS = (30_000_000, 1_000_000_000)


def write_indices(layout: Layout, rows: int) -> int:
    """Index files of chunks; returns how many."""
    rng = np.random.default_rng(0)
    pictures = photographs()[:40]
    pool = [[seen(encoded(p, quality=q))[1] for p in pictures] for q in (90, 60)]
    kinds = pa.array([look for looks in pool for look in looks], pa.binary())
    for number in range(rows // CHUNK_ROWS):
        hashes = rng.integers(0, 2**64, CHUNK_ROWS, dtype=np.uint64)
        hashes[::EVERY] = hashes[1::EVERY] ^ np.uint64(1 << 17)
        picture = rng.integers(0, len(pictures), CHUNK_ROWS)
        picture[::EVERY] = picture[1::EVERY]
        picture[1::EVERY] += len(pictures)
        columns = {
            "place": pa.array(range(CHUNK_ROWS), pa.int32()),
            "key": [rng.bytes(16) for _ in range(CHUNK_ROWS)],
            "sha256": [rng.bytes(16) for _ in range(CHUNK_ROWS)],
            "phash": hashes,
            "characters": pa.array(rng.integers(10, 500, CHUNK_ROWS), pa.int32()),
            "look": kinds.take(pa.array(picture)),
        }
        write_table(layout.index(number), pa.table(columns, schema=INDEX_SCHEMA))
    return rows // CHUNK_ROWS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    folder = Path(tempfile.mkdtemp())
    read = {"bytes": 0}
    steps: list[tuple[str, float, int]] = []

    def counted(path: str, *args: Any, **options: Any) -> pa.Table:
        read["bytes"] += Path(path).stat().st_size
        return read_table(path, *args, **options)

    def timed(name: str, function: Callable[[Any], None], items: Any, tasks: int) -> None:
        started, before = time.process_time(), read["bytes"]
        for item in items:
            function(item)
        steps.append((name, time.process_time() - started, read["bytes"] - before))

    try:
        layout = Layout(str(folder))
        chunks = range(write_indices(layout, rows))
        index.run_tasks = inline_tasks
        similar.run_pass, similar.read_table = timed, counted
        gathered_indices(layout, chunks).make("gather", 1)
        nothing = np.empty(0, np.int64)
        partitions = max(1, rows // 20_000_000)
        _, near = similar.same_and_near(layout, chunks, rows, DISTANCE, partitions, nothing, 1)
    finally:
        shutil.rmtree(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{rows:,} rows, {len(near[0]):,} removed; peak memory {peak:.2f} GiB\n")
    targets = " | ".join(f"{target:,} rows*" for target in TARGETS)
    print(f"| step | CPU s | MB read | core-hours, {targets} |\n|---|---|---|---|---|")
    for name, seconds, size in steps:
        hours = " | ".join(f"{seconds * target / rows / 3600:.2f}" for target in TARGETS)
        print(f"| {name} | {seconds:.1f} | {size / 1e6:.0f} | {hours} |")
    print("\n* in proportion. Computed, with the looks of all rows that have a near hash:")
    for target in TARGETS:
        looks = 2 * target // EVERY * LOOK_BYTES
        pairs = target // EVERY
        together = min(max(LEAST_HASH_PAIRS, -(-pairs // TASKS)), MOST_HASH_PAIRS)
        tasks = -(-pairs // together) + -(-2 * pairs // LOOKS_AT_A_TIME)
        print(
            f"{target:,}: {LOOK_BYTES * target / 1e9:.1f} GB of looks, {looks / 1e9:.2f} GB read "
            f"by each of {tasks} tasks, {4 * together * LOOK_BYTES / 1e6:.0f} MB of them in memory"
        )


if __name__ == "__main__":
    main()
