"""Joins a caption list to as many images: CPU time and memory of each step, for several sizes.

The list is as DreamLIP's, with three of its captions, and in another order than the images; one
image in ten has no row, one row in ten no image. Every step of a size runs in one process of its
own, one after the other, where the stage runs each as many tasks.

    python benchmarks/join.py --rows 1000000 3000000
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.data.config import DataConfig
from pipelines.data.join.flow import GATHERED_CHUNKS, even_groups
from pipelines.data.join.match import attach, match
from pipelines.data.join.sides import gather_images, partitions_of, read_captions
from pipelines.data.paths import ROWS_PER_CHUNK, Chunk, Layout
from pipelines.data.plan import plan_source

SENTENCES = 5_000
STEPS = ("plan", "read captions", "gather images", "join", "attach")


def url(number: int) -> str:
    return f"https://example.com/images/{number:010d}.jpg"


def write_lists(folder: Path, rows: int) -> None:
    """`images.csv` with URLs 0 .. rows, `captions.csv` with rows / 10 .. 1.1 rows, shuffled."""
    rng = random.Random(0)
    words = ["dog", "table", "red", "window", "child", "holding", "under", "a", "the", "bright"]
    texts = [" ".join(rng.choices(words, k=18)).capitalize() + "." for _ in range(SENTENCES)]
    with open(folder / "images.csv", "w") as stream:
        stream.write("url\n")
        stream.writelines(f"{url(n)}\n" for n in range(rows))
    with open(folder / "captions.csv", "w") as stream:
        stream.write("Image Path,raw_caption,shortSV_captions,longSV_captions\n")
        cells = [
            f',{one},"[""{two}""]","[""{" ".join(long)}""]"\n'
            for one, two, *long in (rng.choices(texts, k=7) for _ in range(SENTENCES))
        ]
        order = np.random.default_rng(0).permutation(np.arange(rows // 10, rows * 11 // 10))
        stream.writelines(url(n) + cells[n % SENTENCES] for n in order.tolist())


def measure(folder: Path, rows: int, results: Any) -> None:
    """Put CPU seconds by step, partitions and the peak of memory in MiB into `results`."""
    seconds: dict[str, float] = {}

    def timed(step: str, call: Callable[[], Any]) -> Any:
        started = time.process_time()
        value = call()
        seconds[step] = time.process_time() - started
        return value

    captions = {"path": str(folder / "captions.csv")}
    sources = [{"name": "x", "path": str(folder / "images.csv"), "captions_from": captions}]
    config = DataConfig.model_validate({"sources": sources, "output": str(folder / "out")})
    layout, source, work = Layout(config.output), config.sources[0], str(folder / "work")
    planned = timed("plan", lambda: plan_source(config, layout, 0))
    chunks = [Chunk(n, 0, **entry) for n, entry in enumerate(planned["chunks"])]
    partitions = partitions_of(source)
    read = timed("read captions", lambda: read_captions(source, 0, work, partitions))
    starts = range(0, len(chunks), GATHERED_CHUNKS)
    images = timed(
        "gather images",
        lambda: [
            gather_images(chunks[n : n + GATHERED_CHUNKS], source, layout, work, n, partitions)
            for n in starts
        ],
    )
    groups = even_groups(chunks, partitions)
    firsts = [group[0].number * ROWS_PER_CHUNK for group in groups]
    paths = [entry["path"] for entry in images]
    counts = timed(
        "join",
        lambda: [match(source, read["runs"], paths, n, firsts, work) for n in range(partitions)],
    )
    timed(
        "attach",
        lambda: [
            attach(group, source, layout, work, n, partitions) for n, group in enumerate(groups)
        ],
    )
    joined = sum(entry["joined"] for entry in counts)
    assert joined == rows - rows // 10, joined
    assert joined + sum(entry["without_image"] for entry in counts) == read["rows"] == rows
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    results.put((seconds, partitions, peak))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 3_000_000])
    args = parser.parse_args()
    steps = " | ".join(f"{step}, CPU s" for step in STEPS)
    print(f"| rows of each side | list, GB | partitions | {steps} | peak MiB |")
    print("|---|" + "---|" * (len(STEPS) + 3))
    spawn = multiprocessing.get_context("spawn")
    for rows in args.rows:
        folder = Path(tempfile.mkdtemp())
        try:
            write_lists(folder, rows)
            size = (folder / "captions.csv").stat().st_size / 1e9
            results = spawn.Queue()
            process = spawn.Process(target=measure, args=(folder, rows, results))
            process.start()
            seconds, partitions, peak = results.get()
            process.join()
            times = " | ".join(f"{seconds[step]:.0f}" for step in STEPS)
            print(f"| {rows:,} | {size:.1f} | {partitions} | {times} | {peak:,.0f} |", flush=True)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
