"""Where the data stage's time goes per image, and the floor under it.

Runs the steps of a chunk one after the other over the images of benchmarks/data.py and prints
processor milliseconds of each per row. The floor is what decoding, shrinking and encoding alone
cost with OpenCV and libjpeg-turbo.

    python benchmarks/data_parts.py
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import images
import numpy as np
from data import write_list
from image_server import image_server

from caft.config import validate
from pipelines.data.captions import split_captions
from pipelines.data.chunk import CANDIDATE_SCHEMA, index_row
from pipelines.data.config import DataConfig
from pipelines.data.dataset import DATASET_SCHEMA
from pipelines.data.fetch.download import download
from pipelines.data.filters import AFTER_DECODE, BEFORE_DOWNLOAD, apply_filters
from pipelines.data.images.decoder import Decoder
from pipelines.data.images.prepare import ImageRefused, prepare_image
from pipelines.data.sources import parse_rows, read_tables
from pipelines.data.sources.raw import text_keys
from pipelines.data.write import ParquetSink, read_table


class Clock:
    """Sums processor and wall seconds by step."""

    def __init__(self) -> None:
        self.steps: dict[str, tuple[float, float]] = {}

    def time(self, step: str, work: Callable[[], Any]) -> Any:
        cpu, wall = time.process_time(), time.perf_counter()
        result = work()
        self.steps[step] = (time.process_time() - cpu, time.perf_counter() - wall)
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--port", type=int, default=8951)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="caft-parts-"))
    try:
        with image_server(args.images, args.port) as base_url:
            write_list(folder / "list.csv", base_url, args.images, args.images)
            report(measure(folder, args.images), args.images)
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, rows: int) -> Clock:
    cv2.setNumThreads(1)
    config = validate(DataConfig, settings(folder), source="benchmark")
    source, clock = config.sources[0], Clock()
    tables = clock.time("read the list", lambda: list(read_tables(source)))
    clock.time("key every URL", lambda: [text_keys(table["url"].to_pylist()) for table in tables])
    listed = clock.time("rows of it", lambda: [r for t in tables for r in parse_rows(t, source)])

    def texts() -> None:
        for row in listed:
            split_captions(row, config.captions)

    def text_filters() -> None:
        for row in listed:
            apply_filters(row, config.filters, BEFORE_DOWNLOAD)

    clock.time("sentences of seven captions", texts)
    clock.time("filters of text", text_filters)
    fetched = clock.time("download", lambda: list(download(listed, config.download)))
    there = [row for row in fetched if row["reason"] is None]
    prepared = clock.time(
        "decode, shrink, encode, hash", lambda: [prepare(row, config) for row in there]
    )
    whole = [row["data"] for row, image in zip(there, prepared, strict=True) if image]
    clock.time("(floor: decode, shrink, encode)", lambda: [floor(data) for data in whole])
    with Decoder(config.image) as decoder:
        clock.time("the same in its own process", lambda: [decode(row, decoder) for row in there])
    kept = [row | image for row, image in zip(there, prepared, strict=True) if image]

    def image_filters() -> None:
        for place, row in enumerate(kept):
            apply_filters(row, config.filters, AFTER_DECODE)
            row["place"] = place
            index_row(row)

    clock.time("filters of images, index", image_filters)
    candidates = str(folder / "candidates.parquet")

    def write() -> None:
        with ParquetSink(candidates, CANDIDATE_SCHEMA, 128) as sink:
            for row in kept:
                sink.add(row)

    def finish() -> None:
        table = read_table(candidates).sort_by("place").select(DATASET_SCHEMA.names)
        with ParquetSink(str(folder / "part.parquet"), DATASET_SCHEMA, 128) as sink:
            sink.extend(table)

    clock.time("write candidates", write)
    clock.time("read them, write the part", finish)
    return clock


def settings(folder: Path) -> dict[str, Any]:
    return {
        "sources": [{"name": "images", "path": str(folder / "list.csv")}],
        "output": str(folder / "output"),
        "download": {"retries": 0, "allow_private_hosts": ["127.0.0.1"]},
        "filters": {"max_aspect_ratio": 4, "min_caption_chars": 5, "max_repeated_share": 0.5},
    }


def prepare(row: dict[str, Any], config: DataConfig) -> dict[str, Any] | None:
    try:
        return prepare_image(row["data"], config.image)
    except ImageRefused:
        return None


def decode(row: dict[str, Any], decoder: Decoder) -> None:
    try:
        decoder.prepare(row["data"])
    except ImageRefused:
        return


def floor(data: bytes) -> None:
    """Of JPEG as benchmarks/images.py has it; of other formats OpenCV's decoder, then the same."""
    try:
        images.floor(data)
    except ValueError:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        if pixels is not None and max(pixels.shape[:2]) > images.CONFIG.max_side_px:
            scale = images.CONFIG.max_side_px / max(pixels.shape[:2])
            pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, images.CONFIG.jpeg_quality])


def report(clock: Clock, rows: int) -> None:
    print(f"\n{rows:,} rows as in benchmarks/data.py, one after the other\n")
    print("| step | processor ms per row | wall ms per row |\n|---|---|---|")
    for step, (cpu, wall) in clock.steps.items():
        print(f"| {step} | {1000 * cpu / rows:.3f} | {1000 * wall / rows:.3f} |")


if __name__ == "__main__":
    main()
