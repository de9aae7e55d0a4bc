"""Scenes as a finished dataset folder, for benchmarks that train.

Each row has its drawn image, one long caption, and superpixels where the model reads stored ones;
a model with a superpixel network cuts its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import torch

from caft.config import ModelConfig
from caft.superpixels.stored import encode_superpixels
from pipelines import storage
from pipelines.data.dataset import DATASET_SCHEMA, MANIFEST, SCHEMA_VERSION
from pipelines.data.write import ParquetSink
from pipelines.demo.scenes import SceneConfig, render_scene

ROW_GROUP_ROWS, ROWS_PER_PART = 128, 1024
TEST_SEED = 1_000_000


def write_scenes(folder: Path, count: int, model: ModelConfig, test: int = 0) -> None:
    """`count` training scenes of the size that `model` reads, and `test` ones of split 'test'."""
    entries = []
    shares = [
        (split, range(first, min(first + ROWS_PER_PART, stop)))
        for split, start, stop in (("train", 0, count), ("test", TEST_SEED, TEST_SEED + test))
        for first in range(start, stop, ROWS_PER_PART)
    ]
    for number, (split, seeds) in enumerate(shares):
        name = f"part-{number:05d}.parquet"
        with ParquetSink(str(folder / name), DATASET_SCHEMA, ROW_GROUP_ROWS) as sink:
            for row in _rows(seeds, model):
                sink.add(row | {"split": split})
        assert sink.entry is not None
        entries.append({"name": name, "source": "scenes", **sink.entry})
    manifest = {"schema_version": SCHEMA_VERSION, "files": entries}
    storage.write_json(str(folder / MANIFEST), manifest)


def _rows(seeds: range, model: ModelConfig) -> Iterator[dict[str, Any]]:
    side, config = model.image.image_size_px, model.image.superpixels
    for seed in seeds:
        scene = render_scene(seed, SceneConfig(hard=True, image_size_px=side))
        image = cv2.imencode(".png", scene.image[..., ::-1])[1].tobytes()
        superpixels = None
        if config.method != "sfcn":
            pixels = torch.from_numpy(scene.image).permute(2, 0, 1)[None]  # (1, 3, S, S)
            superpixels = encode_superpixels(pixels, config, side)[0]
        digest = hashlib.sha256(image).hexdigest()
        yield {
            "key": digest[:32],
            "url": f"https://scenes.example/{seed}.png",
            "image": image,
            "width": side,
            "height": side,
            "sha256": digest,
            "captions": [{"source": "scene", "kind": "long", "sentences": list(scene.sentences)}],
            "superpixels": superpixels,
        }
