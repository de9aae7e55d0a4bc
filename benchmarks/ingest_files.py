"""The samples of benchmarks/ingest.py in the three forms that its sides read.

Images are those of benchmarks/image_server.py as the data stage stores them, captions are real long
ones. `dataset/` holds them as Parquet, `files/` one by one, `tars/` as WebDataset shards.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from image_server import make_image

from caft.captions import split_sentences
from pipelines import storage
from pipelines.data.config import ImageConfig
from pipelines.data.dataset import DATASET_SCHEMA, MANIFEST, SCHEMA_VERSION
from pipelines.data.images.prepare import prepare_image
from pipelines.data.write import ParquetSink

CAPTIONS = Path(__file__).parent / "data" / "iiw_docci_test.jsonl"
KINDS = ("raw", "short", "long", "short", "long", "short", "long")  # as DreamLIP has them
ROW_GROUP_ROWS, ROWS_PER_SHARD = 128, 512
SUFFIXES = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp"}


def write_samples(folder: Path, count: int) -> None:
    """Write the first `count` samples in all three forms, unless they are there."""
    done = folder / "count.json"
    if done.exists() and json.loads(done.read_text()) == count:
        return
    for name in ("files", "tars"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    texts = [json.loads(line)["caption"] for line in CAPTIONS.read_text().splitlines()]
    sentences = [split_sentences(text) for text in texts]
    entries, listing = [], []
    with ProcessPoolExecutor() as pool:
        for shard, first in enumerate(range(0, count, ROWS_PER_SHARD)):
            numbers = range(first, min(first + ROWS_PER_SHARD, count))
            rows = list(pool.map(_image, numbers, chunksize=16))
            for row in rows:
                row["captions"] = _captions(row["key"], sentences)
            entries.append(_write_part(folder / "dataset", f"part-{shard:05d}.parquet", rows))
            named = [(f"{n:06d}", row) for n, row in zip(numbers, rows, strict=True)]
            _write_tar(folder / "tars" / f"{shard:05d}.tar", named)
            listing += [_write_file(folder / "files", name, row) for name, row in named]
    manifest = {"schema_version": SCHEMA_VERSION, "files": entries}
    storage.write_json(str(folder / "dataset" / MANIFEST), manifest)
    (folder / "files" / "captions.json").write_text(json.dumps(listing))
    done.write_text(json.dumps(count))


def _image(number: int) -> dict[str, Any]:
    key = hashlib.sha256(str(number).encode()).hexdigest()[:32]
    stored = prepare_image(make_image(number), ImageConfig())
    return stored | {"key": key, "url": f"https://images.example/{number}", "split": "train"}


def _captions(key: str, sentences: list[list[str]]) -> list[dict[str, Any]]:
    """Seven captions of one text: all of it, or two sentences."""
    rng = np.random.default_rng(int(key[:8], 16))
    long = sentences[int(rng.integers(len(sentences)))]
    captions = []
    for n, kind in enumerate(KINDS):
        start = int(rng.integers(max(1, len(long) - 1)))
        chosen = long if kind == "long" else long[start : start + 2]
        captions.append({"source": f"caption_{n}", "kind": kind, "sentences": chosen})
    return captions


def _write_part(folder: Path, name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    with ParquetSink(str(folder / name), DATASET_SCHEMA, ROW_GROUP_ROWS) as sink:
        for row in rows:
            sink.add(row)
    assert sink.entry is not None
    return {"name": name, "source": "benchmark", **sink.entry}


def _write_tar(path: Path, rows: list[tuple[str, dict[str, Any]]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, row in rows:
            text = json.dumps({"key": row["key"], "captions": row["captions"]}).encode()
            for suffix, data in ((_suffix(row), row["image"]), ("json", text)):
                info = tarfile.TarInfo(f"{name}.{suffix}")
                info.size = len(data)
                tar.addfile(info, BytesIO(data))


def _write_file(folder: Path, name: str, row: dict[str, Any]) -> dict[str, Any]:
    file = f"{name}.{_suffix(row)}"
    (folder / file).write_bytes(row["image"])
    return {"file": file, "key": row["key"], "captions": row["captions"]}


def _suffix(row: dict[str, Any]) -> str:
    return SUFFIXES[row["image"][:2]]
