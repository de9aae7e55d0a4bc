"""Two plain ways to feed training: torch's DataLoader over files, and WebDataset over tars.

Written as such loaders commonly are, with what makes them fast: one thread per worker process,
workers that stay, decoding with OpenCV (area averages) or Pillow (bicubic, within the crop alone).
Crops, sub-captions and tokenizer are those of `pipelines.train`, drawn from the worker's seed.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
import webdataset
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from caft.caption_sampling import sample_parts
from caft.tokenizer import load_tokenizer
from caft.transforms import random_window

SIZE_PX, MIN_SCALE, CHUNKS, EXTRA, CONTEXT = 224, 0.9, 4, 4, 77
SHUFFLE_BUFFER = 1000  # samples, as WebDataset's examples have it
RATIO = (3 / 4, 4 / 3)
IMAGES = "jpg;png;webp"
Library = Literal["opencv", "pillow"]


class PlainDataLoader:
    """Shuffled passes over `files/`: the images of each batch."""

    def __init__(self, folder: Path, library: Library, batch: int, workers: int) -> None:
        self._loader = DataLoader(
            Files(folder / "files", Transform(library)),
            batch_size=batch,
            shuffle=True,
            num_workers=workers,
            persistent_workers=True,
            multiprocessing_context="fork",
            worker_init_fn=start_worker,
        )

    def __call__(self, epochs: int) -> Iterator[Tensor]:
        return (images for _ in range(epochs) for images, _ in self._loader)


class PlainWebDataset:
    """Shuffled passes over `tars/`: the images of each batch."""

    def __init__(self, folder: Path, library: Library, batch: int, workers: int) -> None:
        tars = [str(path) for path in sorted((folder / "tars").glob("*.tar"))]
        samples = (
            webdataset.WebDataset(tars, shardshuffle=len(tars), nodesplitter=None)
            .shuffle(SHUFFLE_BUFFER)
            .to_tuple(IMAGES, "json")
            .map(partial(_from_tar, Transform(library)))
            .batched(batch, collation_fn=torch.utils.data.default_collate)
        )
        self._loader = webdataset.WebLoader(
            samples,
            batch_size=None,
            num_workers=workers,
            persistent_workers=True,
            multiprocessing_context="fork",
            worker_init_fn=start_worker,
        )

    def __call__(self, epochs: int) -> Iterator[Tensor]:
        return (images for _ in range(epochs) for images, _ in self._loader)


def _from_tar(transform: Transform, sample: tuple[bytes, bytes]) -> tuple[Tensor, Tensor]:
    return transform(sample[0], json.loads(sample[1])["captions"])


class Files(Dataset):
    """Image files with their captions in memory, as a list of rows."""

    def __init__(self, folder: Path, transform: Transform) -> None:
        self._folder, self._transform = folder, transform
        self._rows = json.loads((folder / "captions.json").read_text())

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, n: int) -> tuple[Tensor, Tensor]:
        row = self._rows[n]
        return self._transform((self._folder / row["file"]).read_bytes(), row["captions"])


class Transform:
    """Encoded image and captions to a crop (3, S, S) and ids (K, T)."""

    def __init__(self, library: Library) -> None:
        self._crop = crop_opencv if library == "opencv" else crop_pillow
        self._rng: np.random.Generator | None = None

    def __call__(self, data: bytes, captions: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        if self._rng is None:
            self._rng = np.random.default_rng(torch.initial_seed() % 2**63)
        image = self._crop(data, self._rng)
        parts = sample_parts(captions, self._rng, CHUNKS, EXTRA)
        tokens = torch.zeros(len(parts), CONTEXT, dtype=torch.long)
        short = load_tokenizer("clip")(parts, CONTEXT)
        tokens[:, : short.shape[1]] = short
        return torch.from_numpy(image).permute(2, 0, 1).contiguous(), tokens


def crop_opencv(data: bytes, rng: np.random.Generator) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    left, top, right, bottom = draw_box(pixels.shape[1], pixels.shape[0], rng)
    crop = pixels[top:bottom, left:right]
    shrinks = min(crop.shape[:2]) > SIZE_PX
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(crop, (SIZE_PX, SIZE_PX), interpolation=method)


def crop_pillow(data: bytes, rng: np.random.Generator) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as picture:
        picture = picture.convert("RGB")
        box = draw_box(picture.width, picture.height, rng)
        crop = picture.resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC, box=box)
    return np.array(crop)


def draw_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    top, left, crop_h, crop_w = random_window(height, width, MIN_SCALE, RATIO, rng)
    return left, top, left + crop_w, top + crop_h


def start_worker(_number: int) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
