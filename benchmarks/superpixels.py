"""What superpixels cost and how well they keep to things: SFCN, SEEDS, a grid and stored maps.

Prints, per method, milliseconds per 224x224 image on one core, bytes of a stored map, and boundary
recall, under-segmentation error and achievable segmentation accuracy against the masks of those
demo photographs that the shipped network has not seen.

    python benchmarks/superpixels.py

The shipped network, caft/assets/sfcn.safetensors, was fitted to the other photographs by

    python benchmarks/superpixels.py --fit caft/assets/sfcn.safetensors
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from caft.config import SuperpixelConfig
from caft.masks import decode_rle
from caft.metrics import (
    achievable_segmentation_accuracy,
    boundary_recall,
    undersegmentation_error,
)
from caft.preprocessing import eval_image
from caft.superpixels import superpixel_labels
from caft.superpixels.__main__ import main as command_line
from caft.superpixels.network import open_sfcn
from caft.superpixels.stored import decode_label_map, encode_label_map, shrink_labels
from caft.transforms import eval_labels
from pipelines.data.write import ParquetSink
from pipelines.demo.sample import PHOTOGRAPHS, TEST_PHOTOGRAPHS

SIZE_PX = 224
METHODS = ("sfcn", "seeds", "grid")
SIZES = {1: "stored", 2: "stored at 112"}  # pixels of an image per pixel of its map
METRICS = (boundary_recall, undersegmentation_error, achievable_segmentation_accuracy)
FIT_OPTIONS = ["--steps", "700", "--bfloat16"]
TIMED_ROUNDS = 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fit", metavar="FILE", help="fit the shipped network again, write it")
    parser.add_argument("--weights", default="sfcn", help="of the network to measure")
    args = parser.parse_args()
    held_out, others = split_photographs()
    if args.fit:
        return fit(others, args.fit)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    images = torch.stack([eval_image(path(entry), SIZE_PX, "squash") for entry in held_out])
    truths = [(n, truth(entry)) for n, entry in enumerate(held_out) if entry["masks"]]
    print_tables(images, truths, args.weights)
    return 0


def split_photographs() -> tuple[list[dict], list[dict]]:
    """The photographs that the demo tests on, and those that it trains on."""
    entries = json.loads((PHOTOGRAPHS / "captions.json").read_text(encoding="utf-8"))
    held_out = [
        entry
        for n, entry in enumerate(entries)
        if n * TEST_PHOTOGRAPHS % len(entries) < TEST_PHOTOGRAPHS
    ]
    return held_out, [entry for entry in entries if entry not in held_out]


def path(entry: dict) -> Path:
    return PHOTOGRAPHS / entry["file"]


def fit(entries: list[dict], output: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        for entry in entries:
            os.symlink(path(entry).resolve(), Path(folder) / entry["file"])
        return command_line(["fit", folder, "--output", output, *FIT_OPTIONS])


def truth(entry: dict) -> np.ndarray:
    """Which categories' masks a pixel lies in, as one label (224, 224); most often one or none."""
    masks = [decode_rle(rle).astype(np.uint8) for rle in entry["masks"].values()]
    fitted = [cv2.resize(m, (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_NEAREST) for m in masks]
    stacked = np.stack(fitted).reshape(len(masks), -1)
    return np.unique(stacked, axis=1, return_inverse=True)[1].reshape(SIZE_PX, SIZE_PX)


def print_tables(images: Tensor, truths: list[tuple[int, np.ndarray]], weights: str) -> None:
    config = SuperpixelConfig(method="sfcn", weights=weights)
    network = open_sfcn(config)
    print(
        f"{len(images)} photographs at {SIZE_PX}x{SIZE_PX}, {len(truths)} of them with masks; one "
        "core\n\n| method | ms per image | bytes stored | boundary recall | under-segmentation | "
        "achievable accuracy |\n|---|---|---|---|---|---|"
    )
    for method in METHODS:
        config = SuperpixelConfig(method=method, weights=weights)
        maps = torch.cat([superpixel_labels(image[None], config, network) for image in images])
        cost = milliseconds(lambda n, c=config: superpixel_labels(images[n : n + 1], c, network))
        print(f"| {method} | {cost:.1f} | | {quality(maps.numpy(), truths)} |")
        for factor, name in SIZES.items():
            stored = [encode_label_map(one.numpy(), 196) for one in shrink_labels(maps, factor)]
            cost = milliseconds(lambda n, s=stored: eval_labels(decode_label_map(s[n]), SIZE_PX))
            bytes_stored = parquet_bytes(stored) / len(stored)
            read = np.stack([eval_labels(decode_label_map(data), SIZE_PX) for data in stored])
            scores = quality(read, truths)
            print(f"| {name} {method} | {cost:.1f} | {bytes_stored:,.0f} | {scores} |")


def parquet_bytes(stored: list[bytes]) -> int:
    """Of the column in a file that the data stage would write."""
    table = pa.table({"superpixels": pa.array(stored, pa.binary())})
    with tempfile.TemporaryDirectory() as folder:
        with ParquetSink(f"{folder}/maps.parquet", table.schema, len(stored)) as sink:
            sink.extend(table)
        return (
            pq.read_metadata(f"{folder}/maps.parquet").row_group(0).column(0).total_compressed_size
        )


def quality(maps: np.ndarray, truths: list[tuple[int, np.ndarray]]) -> str:
    scores = [np.nanmean([metric(maps[n], true) for n, true in truths]) for metric in METRICS]
    return " | ".join(f"{100 * score:.1f}" for score in scores)


def milliseconds(work: Callable[[int], object], count: int = 16) -> float:
    """Median over rounds of the mean processor time of one call."""
    work(0)
    rounds = []
    for _ in range(TIMED_ROUNDS):
        started = time.process_time()
        for n in range(count):
            work(n)
        rounds.append((time.process_time() - started) / count)
    return 1000 * float(np.median(rounds))


if __name__ == "__main__":
    sys.exit(main())
