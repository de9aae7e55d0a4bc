"""Where the ingest's time goes per image: each part alone, in one process, in processor time.

`print_parts` is what benchmarks/ingest.py prints last.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from caft import transforms
from caft.caption_sampling import sample_parts
from caft.config import SuperpixelConfig, load_model_config
from caft.superpixels import encode_superpixels, stored_labels, superpixel_labels
from pipelines.data.dataset import open_dataset
from pipelines.train.config import IngestConfig
from pipelines.train.ingest import _collate, index_row_groups
from pipelines.train.loader import Loader, read_rows, sample_generator
from pipelines.train.plan import Piece

ROWS, REPEATS = 256, 3


def print_parts(dataset: Path, model_name: str) -> None:
    print("\n| part | processor ms per image |\n|---|---|")
    for name, seconds in measure(str(dataset), model_name).items():
        print(f"| {name} | {1000 * seconds / ROWS:.3f} |")


def measure(folder: str, model_name: str) -> dict[str, float]:
    """Processor seconds of each part for `ROWS` rows, the least of some repeats."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    model, settings = load_model_config(model_name), IngestConfig()
    loader = Loader(folder, "train", model, settings)
    size, text, image = model.image.image_size_px, model.text, model.image
    pieces: list[Piece] = []
    for group in index_row_groups(open_dataset(folder), "train"):
        left = ROWS - sum(piece.stop for piece in pieces)
        if left:
            pieces.append(Piece(group.file, group.index, 0, min(left, group.rows)))
    parts: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        parts[name], result = fastest(work)
        return result

    rows = timed("read", lambda: read_rows(folder, pieces, "train"))
    pixels = timed("decode", lambda: [transforms.decode_image(data) for data in rows.images])
    timed("decode JPEG files as training does", lambda: [_decoded(data) for data in rows.images])
    timed("crop and resize", lambda: [_resized(one, size) for one in pixels])
    crops = timed(
        "decode, crop and resize: `train_image`",
        lambda: [
            transforms.train_image(
                data,
                size,
                settings.crop.min_scale,
                sample_generator(0, key),
                ratio=settings.crop.ratio,
            )[0]
            for key, data in zip(rows.keys, rows.images, strict=True)
        ],
    )
    images = timed("stack", lambda: torch.stack(crops))
    seeds = SuperpixelConfig(method="seeds")
    maps = encode_superpixels(images, seeds, size)
    timed("superpixels: stored", lambda: [stored_labels(one, image) for one in maps])
    timed("superpixels: SEEDS", lambda: superpixel_labels(images, seeds))
    sampled = timed(
        "sample captions",
        lambda: [
            sample_parts(captions, sample_generator(0, key), text.chunks, loader.extra_parts)
            for key, captions in zip(rows.keys, rows.captions, strict=True)
        ],
    )
    tokens = timed("tokenise", lambda: loader.tokenise([p for row in sampled for p in row]))
    lane = {
        "images": images.numpy(),
        "superpixels": np.full((ROWS, 1, 1), -1, dtype=np.int16),
        "tokens": tokens,
        "keys": np.array(rows.keys, dtype=object),
    }
    quarters = [{k: v[n::4] for k, v in lane.items()} for n in range(4)]
    quarters = [{k: v.copy() for k, v in one.items()} for one in quarters]
    timed("collate", lambda: _collate(quarters, slice(0, ROWS // 4)))
    return parts


def fastest(work: Callable[[], Any]) -> tuple[float, Any]:
    best = float("inf")
    for _ in range(REPEATS):
        start = time.process_time()
        result = work()
        best = min(best, time.process_time() - start)
    return best, result


def _decoded(data: bytes) -> np.ndarray:
    size = transforms._jpeg_size(data)
    if size is None:
        return transforms.decode_image(data)
    return transforms._decode_jpeg(data, *size, factor=1)[0]


def _resized(pixels: np.ndarray, size_px: int) -> Any:
    return transforms.resize_bicubic(pixels, size_px)
