"""Writes the demo's sample: image files, URL lists in DreamLIP's columns, and sentence regions.
What the loopback server serves and the data stage downloads, a few faults included."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2

from caft.masks import encode_rle
from pipelines.data.sources import DREAMLIP_CAPTION_COLUMNS, DREAMLIP_URL_COLUMN
from pipelines.demo.scenes import SceneConfig, render_scene

PHOTOGRAPHS = Path(__file__).parent / "photographs"
TEST_PHOTOGRAPHS = 16
TEST_SEED_OFFSET = 1_000_000
JPEG_QUALITY = 95
REGIONS = "regions.jsonl"
# CSV files, in the order of the sources of configs/data/demo.yaml.
LISTS = ("scenes_train", "photographs_train", "scenes_test", "photographs_test")
COLUMNS = [DREAMLIP_URL_COLUMN, *DREAMLIP_CAPTION_COLUMNS]
# Paths that the server answers badly, and what the data stage must make of them.
FAULTS = {
    "faults/missing.jpg": "http_4xx",
    "faults/gone.jpg": "http_4xx",
    "faults/broken-server.jpg": "http_5xx",
    "faults/truncated.jpg": "truncated_image",
    "faults/page.jpg": "not_an_image",
    "faults/slow.jpg": "timeout",
    "faults/forbidden.jpg": "noai",
    "faults/inside.jpg": "private_address",
}


def write_sample(
    folder: Path, base_url: str, train_scenes: int = 6000, test_scenes: int = 500, seed: int = 0
) -> None:
    """Write the whole sample below `folder`, to be served at `base_url`.

    Lists: scenes_train.csv, scenes_test.csv, photographs_train.csv, photographs_test.csv.
    Regions of the test images: regions.jsonl, one line per image with its `url` and, per
    sentence or category, `text` and a COCO run-length mask.
    """
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [("train", n, seed + n) for n in range(train_scenes)]
    jobs += [("test", n, seed + TEST_SEED_OFFSET + n) for n in range(test_scenes)]
    for split in ("train", "test"):
        (folder / "scenes" / split).mkdir(parents=True, exist_ok=True)
    with get_context("spawn").Pool(2) as pool:
        written = pool.starmap(_write_scene, [(folder, *job) for job in jobs], chunksize=100)
    rows: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    regions: list[dict[str, Any]] = []
    for (split, _, _), (path, caption, masks) in zip(jobs, written, strict=True):
        url = f"{base_url}/{path}"
        rows[split].append(_row(url, longSV_captions=caption))
        if split == "test":
            regions.append({"url": url, "regions": masks})
    rows["train"] += list(_fault_rows(base_url, rows["train"]))
    for split, listed in rows.items():
        _write_csv(folder / f"scenes_{split}.csv", listed)
    regions += _write_photographs(folder, base_url)
    text = "".join(json.dumps(line) + "\n" for line in regions)
    (folder / REGIONS).write_text(text, encoding="utf-8")


def _write_scene(folder: Path, split: str, number: int, seed: int) -> tuple[str, str, list]:
    scene = render_scene(seed, SceneConfig())
    path = f"scenes/{split}/{number:06d}.jpg"
    pixels = cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR)
    cv2.imwrite(str(folder / path), pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    masks = [
        {"text": sentence, **encode_rle(mask)}
        for sentence, mask in zip(scene.sentences, scene.masks, strict=True)
    ]
    return path, scene.caption, masks if split == "test" else []


def _write_photographs(folder: Path, base_url: str) -> list[dict[str, Any]]:
    """Copy the photographs and write their lists; returns the regions of the test ones."""
    (folder / "photographs").mkdir(exist_ok=True)
    entries = json.loads((PHOTOGRAPHS / "captions.json").read_text(encoding="utf-8"))
    rows: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    regions = []
    for n, entry in enumerate(entries):
        file = entry["file"]
        (folder / "photographs" / file).write_bytes((PHOTOGRAPHS / file).read_bytes())
        split = "test" if n * TEST_PHOTOGRAPHS % len(entries) < TEST_PHOTOGRAPHS else "train"
        url = f"{base_url}/photographs/{file}"
        short = entry["short_captions"]
        rows[split].append(
            _row(
                url,
                raw_caption=short[0],
                shortIB_captions=json.dumps(short[1:]),
                longSV_captions=entry["long_caption"],
            )
        )
        if split == "test" and entry["masks"]:
            named = [
                {"text": f"a photo of a {name}", **rle} for name, rle in entry["masks"].items()
            ]
            regions.append({"url": url, "regions": named})
    for split, listed in rows.items():
        _write_csv(folder / f"photographs_{split}.csv", listed)
    return regions


def _fault_rows(base_url: str, good: list[dict[str, str]]) -> Iterator[dict[str, str]]:
    """Rows that must be rejected: one per fault, a duplicate, no caption, no URL."""
    for path in FAULTS:
        yield _row(f"{base_url}/{path}", longSV_captions="A picture. It never arrives. Ever.")
    yield good[0]
    yield _row(f"{base_url}/scenes/train/none.jpg")
    yield _row("ftp://example.org/a.jpg", longSV_captions="Another protocol. It is refused.")


def _row(url: str, **captions: str) -> dict[str, str]:
    return dict.fromkeys(COLUMNS, "") | {DREAMLIP_URL_COLUMN: url} | captions


def _write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
