"""What feeds a step, and what many steps learn: ingest, a training by the whole stage, and the
plain path that the model is held against. The last sections of an acceptance."""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ingest import start_side
from ingest_files import write_samples
from learn_scenes import scores
from scene_files import TEST_SEED, write_scenes
from train_step import make_inputs, make_side

import caft
from acceptance.machine import settle
from caft.config import load_config
from caft.metrics import retrieval_recall
from pipelines.demo.scenes import SceneConfig, render_scene
from pipelines.run_layout import FINAL
from pipelines.train.config import TrainConfig

DEMO = Path(__file__).resolve().parents[2] / "configs" / "train" / "demo.yaml"
MOST_CORES = 64  # of ingest
ROUNDS, PLAIN_IMAGES = 3, 64


def ingest(small: bool) -> dict[str, Any]:
    """Images a second that the train stage's ingest gives on this host, beside a DataLoader."""
    images, epochs = (256, 1) if small else (2048, 8)
    cores = min(MOST_CORES, len(os.sched_getaffinity(0)))
    asked = argparse.Namespace(images=images, cores=cores)
    found: dict[str, Any] = {"cores": cores, "images": images}
    with tempfile.TemporaryDirectory(prefix="caft-ingest-") as folder:
        write_samples(Path(folder), images)
        names = ["ours (Ray Data)", *([] if small else ["DataLoader, OpenCV"])]
        for name in names:
            side = start_side(name, Path(folder), asked)
            side.send(epochs)
            wall, cpu = side.recv()
            side.send(0)
            found[name] = {"images_per_s": images * epochs / wall, "cpu_ms": 1e3 * cpu / images}
    return found


@dataclass(frozen=True)
class Training:
    """A run on scenes: what it trains on and for how long."""

    scenes: int = 3200
    batch: int = 128
    epochs: int = 8  # 200 steps
    tested: int = 500


def training(workers: int, small: bool) -> dict[str, Any]:
    """Recall of caft_xs after 200 steps by the train stage, on every card at once."""
    from pipelines.train.__main__ import run

    asked = Training(64, 16, 1, 16) if small else Training()
    cuda = torch.cuda.is_available()
    with tempfile.TemporaryDirectory(prefix="caft-training-") as folder:
        write_scenes(Path(folder) / "data", asked.scenes, caft.create_model("caft_xs").config)
        overrides = [
            f"dataset={folder}/data", f"output={folder}/run", f"epochs={asked.epochs}",
            f"global_batch={asked.batch}", f"block_size={asked.batch}", "ingest.lanes=16",
            "ingest.window_steps=4", f"scaling.num_workers={workers}", f"scaling.use_gpu={cuda}",
            f"deepspeed.precision={'bfloat16' if cuda else 'float32'}",
            f"optimizer.warmup_steps={1 if small else 40}", "checkpoint.every_steps=100000",
            f"tracking.uri=sqlite:///{folder}/mlflow.db",
        ]  # fmt: skip
        run(load_config(TrainConfig, str(DEMO), overrides))
        model = caft.load_model(Path(folder) / "run" / FINAL)
    model.to("cuda" if cuda else "cpu").eval()
    seeds = range(TEST_SEED, TEST_SEED + asked.tested)
    scenes = [render_scene(seed, SceneConfig(hard=True)) for seed in seeds]
    recall = retrieval_recall(scores(model, 0.3, scenes), torch.arange(len(scenes)))
    steps = asked.scenes // asked.batch * asked.epochs
    return {"scenes": asked.tested, "steps": steps, **recall}


def plain(small: bool) -> dict[str, Any]:
    """Milliseconds of a step of CAFT-B, ours in bfloat16 beside the plain path in float32, by
    part, in turns and with as many images as both hold. Both eager, superpixels given to both."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images, rounds = (1, 1) if small else (PLAIN_IMAGES, ROUNDS)
    asked = argparse.Namespace(device=device, compile=False)
    while True:
        try:
            inputs = make_inputs(images, 8, device)
            sides = {name: make_side(name, asked) for name in ("plain float32", "ours bfloat16")}
            times: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
            for _ in range(rounds + 1):
                for name, side in sides.items():
                    times[name].append(side(inputs))
            break
        except torch.OutOfMemoryError:
            images //= 2
            settle(torch.device(device))
            torch.cuda.empty_cache()
    medians = {
        name: {part: 1e3 * statistics.median(t[part] for t in runs[1:]) for part in runs[0]}
        for name, runs in times.items()
    }
    whole = {name: sum(parts.values()) for name, parts in medians.items()}
    return {
        "images": images,
        "ms": medians,
        "faster": whole["plain float32"] / whole["ours bfloat16"],
    }
