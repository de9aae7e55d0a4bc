"""What preparing one image costs: img2dataset, ours in and out of its own process, and the floor.

Prints milliseconds per JPEG of several sizes, made of the demo's photographs with some noise. The
floor is libjpeg-turbo and OpenCV alone: what must be decoded, shrunk and encoded, and nothing else.

    python benchmarks/images.py
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # img2dataset's resizer would ask the network

import cv2
import numpy as np
import simplejpeg
from img2dataset.resizer import Resizer

import pipelines.demo
from pipelines.data.config import ImageConfig
from pipelines.data.images.decoder import Decoder
from pipelines.data.images.prepare import prepare_image

PHOTOGRAPHS = Path(pipelines.demo.__file__).with_name("photographs")
SIZES = ((400, 300), (640, 480), (1024, 768), (2048, 1536))
IMAGES, ROUNDS, QUALITY, NOISE = 12, 15, 90, 4.0
CONFIG = ImageConfig()


def main() -> int:
    cv2.setNumThreads(1)
    resizer = Resizer(
        CONFIG.max_side_px,
        "keep_ratio_largest",
        resize_only_if_bigger=True,
        encode_quality=CONFIG.jpeg_quality,
        skip_reencode=True,
    )
    print(
        "| JPEG | KB | img2dataset | ours | ours, in its own process | floor |\n"
        "|---|---|---|---|---|---|"
    )
    with Decoder(CONFIG) as decoder:
        for width, height in SIZES:
            files = [jpeg(n, width, height) for n in range(IMAGES)]
            times = milliseconds(
                files,
                lambda data: resizer(io.BytesIO(data)),
                lambda data: prepare_image(data, CONFIG),
                decoder.prepare,
                floor,
            )
            kilobytes = np.mean([len(data) for data in files]) / 1000
            cells = " | ".join(f"{cost:.2f}" for cost in times)
            print(f"| {width} x {height} | {kilobytes:,.0f} | {cells} |")
    return 0


def jpeg(n: int, width: int, height: int) -> bytes:
    paths = sorted(PHOTOGRAPHS.glob("*.jpg"))
    pixels = cv2.imread(str(paths[n * len(paths) // IMAGES]))
    pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_CUBIC)
    noisy = pixels + np.random.default_rng(n).normal(0, NOISE, pixels.shape)
    pixels = np.clip(noisy, 0, 255).astype(np.uint8)
    return simplejpeg.encode_jpeg(pixels, QUALITY, "BGR", "420")


def floor(data: bytes) -> None:
    """Decode at the power of two nearest above what is due, then shrink and encode if due."""
    height, width = simplejpeg.decode_jpeg_header(data)[:2]
    longest, side = max(height, width), CONFIG.max_side_px
    if longest <= side:
        simplejpeg.decode_jpeg(data, "GRAY", min_height=64, min_width=64)
        return
    factor = 1 << int(np.log2(longest / side))
    pixels = simplejpeg.decode_jpeg(
        data, "RGB", min_height=-(-height // factor), min_width=-(-width // factor)
    )
    size = (width * side // longest, height * side // longest)
    if pixels.shape[1::-1] != size:
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    simplejpeg.encode_jpeg(pixels, CONFIG.jpeg_quality, "RGB", "420")


def milliseconds(files: list[bytes], *works: Callable[[bytes], object]) -> list[float]:
    """Mean time of one call in each one's best round, all taking turns."""
    best = [np.inf] * len(works)
    for _ in range(ROUNDS):
        for n, work in enumerate(works):
            started = time.perf_counter()
            for data in files:
                work(data)
            best[n] = min(best[n], 1000 * (time.perf_counter() - started) / len(files))
    return best


if __name__ == "__main__":
    sys.exit(main())
