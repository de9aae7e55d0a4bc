"""What the data stage's bookkeeping takes for a billion rows: everything but the images.

Plan, join, equal URLs, receipts and the passes for duplicates run on synthetic URLs, captions and
hashes at 1% of the size, one task after another in one process. CPU time, peak memory, files and
opened files are measured; what a billion rows take is extrapolated in proportion, and marked so.
How often their indices are read, and in how many bands, is computed.

    python benchmarks/billion_rows.py                   # 10 million rows
    python benchmarks/billion_rows.py --rows 1000000
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines import storage
from pipelines.data import gathered, stage
from pipelines.data.config import DataConfig
from pipelines.data.dedup import duplicates, index, urls
from pipelines.data.dedup.pairs import choose_bands
from pipelines.data.images.look import LOOK_BYTES
from pipelines.data.join import flow
from pipelines.data.paths import Chunk, Layout
from pipelines.data.planned import write_planned
from pipelines.data.sources import RAW_SCHEMA
from pipelines.data.write import write_table

TARGET = 1_000_000_000
CHUNK_ROWS = 10_000
EXACT_PASSES = 3  # over all indices: keys, digests of bytes, hashes
CAPTION = "A dog runs over a green field towards a red ball that a child has thrown number"


def inline_tasks(
    label: str, function: Callable[[Any], Any], items: Iterable[Any], *_: Any, **__: Any
) -> Iterator[tuple[Any, Any]]:
    """As `run_tasks`, here, one after another."""
    for item in items:
        yield item, json.loads(json.dumps(function(item)))


def url(number: int) -> str:
    return f"https://example.com/images/{number:010d}.jpg"


class Clock:
    """A line for each step: CPU seconds, peak memory so far, files, opened files."""

    def __init__(self, rows: int, folder: Path) -> None:
        self._factor, self._folder, self._opened = TARGET / rows, folder, 0
        original = storage.filesystem

        def counting(path: str) -> Any:
            self._opened += 1
            return original(path)

        storage.filesystem = counting
        print(f"| step | CPU s | peak MiB | files | requests | core-hours, {TARGET:,} rows* |")
        print("|---|---|---|---|---|---|", flush=True)

    def time(self, step: str, call: Callable[[], Any]) -> Any:
        started, opened = time.process_time(), self._opened
        value = call()
        seconds = time.process_time() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        files = sum(path.is_file() for path in self._folder.rglob("*"))
        print(
            f"| {step} | {seconds:.0f} | {peak:,.0f} | {files:,} | {self._opened - opened:,} "
            f"| {seconds * self._factor / 3600:.1f} |",
            flush=True,
        )
        return value


def write_plan(layout: Layout, rows: int) -> list[Chunk]:
    """A planned list without captions, as a source with `captions_from` has it."""
    chunks = []
    for number, start in enumerate(range(0, rows, CHUNK_ROWS)):
        count = min(CHUNK_ROWS, rows - start)
        columns = {
            "url": [url(n) for n in range(start, start + count)],
            "captions": [[]] * count,
            "columns": [[]] * count,
            "reason": pa.nulls(count, pa.string()),
            "detail": [""] * count,
        }
        path = f"plan/0-{number:05d}.parquet"
        write_planned(layout, path, pa.table(columns, schema=RAW_SCHEMA))
        chunks.append(Chunk(number, 0, path, count))
    return chunks


def write_indices(layout: Layout, rows: int) -> None:
    """What chunks leave for the passes; one hash in fifty is near another."""
    rng = np.random.default_rng(0)
    for number, start in enumerate(range(0, rows, CHUNK_ROWS)):
        count = min(CHUNK_ROWS, rows - start)
        hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
        hashes[::50] = hashes[1::50][: len(hashes[::50])] ^ np.uint64(1 << 17)
        columns = {
            "place": pa.array(range(count), pa.int32()),
            "key": [rng.bytes(16) for _ in range(count)],
            "sha256": [rng.bytes(16) for _ in range(count)],
            "phash": hashes,
            "characters": pa.array(rng.integers(10, 500, count), pa.int32()),
        }
        others = {
            field.name: pa.repeat(pa.scalar(b"\1" * LOOK_BYTES, field.type), count)
            for field in index.INDEX_SCHEMA
            if field.name not in columns
        }
        write_table(layout.index(number), pa.table(columns | others, schema=index.INDEX_SCHEMA))


def receipts(layout: Layout, count: int) -> None:
    for number in range(count):
        receipt = {"chunk": number, "input_rows": CHUNK_ROWS, "kept": None, "reasons": {"dns": 3}}
        storage.write_json(layout.receipt("chunk", number), receipt)
    assert len(stage._receipts(layout, "chunk")) == count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=TARGET // 100)
    rows = parser.parse_args().rows
    for module in (gathered, index, urls, flow):
        module.run_tasks = inline_tasks
    flow.cluster_cpus = lambda: 1
    folder = Path(tempfile.mkdtemp())
    try:
        with open(folder / "captions.csv", "w") as stream:
            stream.write("url,caption\n")
            order = np.random.default_rng(0).permutation(rows)
            stream.writelines(f"{url(n)},{CAPTION} {n}.\n" for n in order.tolist())
        captions = {"path": str(folder / "captions.csv")}
        source = {"name": "x", "path": str(folder / "images.csv"), "captions_from": captions}
        config = DataConfig.model_validate({"sources": [source], "output": str(folder / "out")})
        layout = Layout(config.output)
        clock = Clock(rows, Path(config.output))
        chunks = clock.time("plan", lambda: write_plan(layout, rows))
        clock.time("join", lambda: flow.join_captions(config.sources[0], 0, chunks, layout))
        clock.time("equal URLs", lambda: urls.equal_urls(chunks, config, layout, 1))
        clock.time("receipts", lambda: receipts(layout, len(chunks)))
        clock.time("indices", lambda: write_indices(layout, rows))
        numbers = list(range(len(chunks)))
        nothing = duplicates.DROP_SCHEMA.empty_table()
        clock.time(
            "duplicates",
            lambda: duplicates.find_drops(config, layout, numbers, (), nothing, 1),
        )
        size = sum(path.stat().st_size for path in Path(layout.work).glob("indices-*"))
    finally:
        shutil.rmtree(folder)
    settings = config.duplicates
    partitions = -(-TARGET // settings.partition_rows)
    bands = len(choose_bands(TARGET, settings.near_distance or 0))
    reads = partitions * (EXACT_PASSES + bands)
    print(f"\n* Extrapolated from {rows:,} rows in proportion, on one core.")
    print(
        f"{partitions} partitions of {EXACT_PASSES} passes and {bands} bands read "
        f"all indices: {reads:,} times {size * TARGET / rows / 1e9:,.0f} GB, computed."
    )


if __name__ == "__main__":
    main()
