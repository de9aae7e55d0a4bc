"""Rows embedded and queries searched a second, beside peers in the same run.

Search: `caft.search.nearest` over a memory-mapped float16 file of random unit rows; a plain NumPy
product over a float32 copy in memory; FAISS's exact indices, where faiss-cpu is installed. They
take turns, and all have to find the same rows. Embedding: the stage on drawn scenes, with a model
of random weights, beside a plain loop of `model.encode_image` over the same files.

    python benchmarks/search.py --rows 1000000
    python benchmarks/search.py --images 96 --model caft_b
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

import caft
from caft.search import nearest

Search = Callable[[np.ndarray, int], np.ndarray]


def write_rows(path: Path, rows: int, width: int) -> None:
    rng = np.random.default_rng(0)
    matrix = np.lib.format.open_memmap(path, "w+", np.float16, (rows, width))
    for start in range(0, rows, 100_000):
        block = rng.standard_normal((min(100_000, rows - start), width), dtype=np.float32)
        matrix[start : start + len(block)] = block / np.linalg.norm(block, axis=1, keepdims=True)
    matrix.flush()


def ways(path: Path) -> dict[str, tuple[Search, float, float]]:
    """Each way to search, with the seconds to load it and the GB that it holds in memory."""
    found: dict[str, tuple[Search, float, float]] = {}

    def add(name: str, load: Callable[[], Search]) -> None:
        started, before = time.perf_counter(), resident_gb()
        search = load()
        found[name] = search, time.perf_counter() - started, resident_gb() - before

    def ours() -> Search:
        matrix = np.load(path, mmap_mode="r")
        return lambda queries, count: nearest(matrix, torch.from_numpy(queries), count).rows.numpy()

    def plain() -> Search:
        matrix = np.load(path).astype(np.float32)

        def search(queries: np.ndarray, count: int) -> np.ndarray:
            scores = queries @ matrix.T
            best = np.argpartition(-scores, count, axis=1)[:, :count]
            order = np.take_along_axis(-scores, best, axis=1).argsort(axis=1)
            return np.take_along_axis(best, order, axis=1)

        return search

    add("ours, float16 file", ours)
    add("NumPy, float32 in memory", plain)
    try:
        import faiss
    except ImportError:
        print("faiss-cpu is not installed: FAISS is left out")
        return found

    def flat() -> Search:
        index = faiss.IndexFlatIP(np.load(path, mmap_mode="r").shape[1])
        index.add(np.load(path).astype(np.float32))
        return lambda queries, count: index.search(queries, count)[1]

    def half() -> Search:
        matrix = np.load(path)
        kind = faiss.ScalarQuantizer.QT_fp16
        index = faiss.IndexScalarQuantizer(matrix.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
        index.add(matrix.astype(np.float32))
        return lambda queries, count: index.search(queries, count)[1]

    add("FAISS IndexFlatIP, float32", flat)
    add("FAISS IndexScalarQuantizer, float16", half)
    return found


def resident_gb() -> float:
    """Of this process without files that it maps."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 2**20
    return 0.0


def measure_search(rows: int, width: int, count: int, turns: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "whole.npy"
        write_rows(path, rows, width)
        matrix = np.load(path, mmap_mode="r")
        rng = np.random.default_rng(1)
        known = ways(path)
        seconds: dict[tuple[str, int], list[float]] = {}
        cpu: dict[tuple[str, int], list[float]] = {}
        agreed = dict.fromkeys(known, 1.0)
        for turn in range(turns):
            for size in (1, 16):
                near = matrix[rng.integers(0, rows, size)].astype(np.float32)
                queries = near + 0.05 * rng.standard_normal(near.shape, dtype=np.float32)
                queries /= np.linalg.norm(queries, axis=1, keepdims=True)
                answers = {}
                for name, (search, _, _) in known.items():
                    started, began = time.perf_counter(), time.process_time()
                    answers[name] = search(queries, count)
                    if turn:  # the first is to warm up
                        seconds.setdefault((name, size), []).append(time.perf_counter() - started)
                        cpu.setdefault((name, size), []).append(time.process_time() - began)
                first = answers["ours, float16 file"]
                for name, other in answers.items():
                    same = np.mean(
                        [len(np.intersect1d(a, b)) for a, b in zip(first, other, strict=True)]
                    )
                    agreed[name] = min(agreed[name], float(same) / count)
        print(
            f"\n{rows:,} rows of {width}, the best {count}; {len(os.sched_getaffinity(0))} cores; "
            f"median of {turns - 1}, taking turns\n"
        )
        print(
            "| | load, s | held, GB | 1 query, ms | its CPU, ms | 16, ms | queries/s | same rows |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for name, (_, load, held) in known.items():
            one, many = (statistics.median(seconds[name, size]) for size in (1, 16))
            busy = statistics.median(cpu[name, 1])
            print(
                f"| {name} | {load:.1f} | {held:.1f} | {1e3 * one:.0f} | {1e3 * busy:.0f} | "
                f"{1e3 * many:.0f} | {16 / many:.0f} | {100 * agreed[name]:.2f}% |"
            )


def measure_embedding(images: int, model_name: str, concurrency: int) -> None:
    from caft.checkpoint import save_weights, write_manifest
    from caft.config import validate
    from pipelines.demo.scenes import SceneConfig, render_scene
    from pipelines.embed.config import EmbedConfig
    from pipelines.embed.stage import run

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "images").mkdir()
        for number in range(images):
            scene = render_scene(number, SceneConfig(image_size_px=224))
            cv2.imwrite(str(root / "images" / f"{number:05d}.jpg"), scene.image[..., ::-1])
        files = sorted((root / "images").iterdir())
        torch.manual_seed(0)
        model = caft.create_model(model_name).eval()
        save_weights(model, root / "checkpoint")
        write_manifest(root / "checkpoint", {"step": 0, "mlflow_run_id": "", "metrics": {}})
        started = time.perf_counter()
        with torch.inference_mode():
            for start in range(0, images, 64):
                model.encode_image([str(file) for file in files[start : start + 64]])
        plain = time.perf_counter() - started
        tracking = {"uri": f"sqlite:///{root}/mlflow.db"}
        settings = {
            "source": {"path": str(root / "images")},
            "checkpoint": str(root / "checkpoint"),
            "output": str(root / "embedding"),
            "concurrency": concurrency,
            "chunk_rows": 128,
            "tracking": tracking,
        }
        started = time.perf_counter()
        run(validate(EmbedConfig, settings, "benchmark"))
        whole = time.perf_counter() - started
        from mlflow import MlflowClient

        from pipelines.embed.embedding import open_embedding

        run_id = open_embedding(settings["output"]).manifest["mlflow_run_id"]
        rate = MlflowClient(tracking["uri"]).get_run(run_id).data.metrics["rows_per_s"]
    print(
        f"\n{model_name}, {images:,} images of 224 pixels, {len(os.sched_getaffinity(0))} cores\n"
    )
    print("| | rows/s |\n|---|---|")
    print(f"| plain loop of `model.encode_image` | {images / plain:.1f} |")
    print(f"| the stage, once it runs | {rate:.1f} |")
    print(f"| the stage, start of Ray included | {images / whole:.1f} |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\npeak memory of this process: {peak:.1f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=0, help="to search; 0: none")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--turns", type=int, default=8, help="the first is to warm up")
    parser.add_argument("--images", type=int, default=0, help="to embed; 0: none")
    parser.add_argument("--model", default="caft_b")
    parser.add_argument("--concurrency", type=int, default=1)
    args = parser.parse_args()
    if args.rows:
        measure_search(args.rows, args.width, args.count, args.turns)
    if args.images:
        measure_embedding(args.images, args.model, args.concurrency)


if __name__ == "__main__":
    main()
