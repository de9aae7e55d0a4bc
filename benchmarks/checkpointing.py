"""What a checkpoint costs training: saved beside it, as the train stage does, or while it waits.

One worker trains on one thread. Beside training, a step waits for a copy in host memory, and a
thread writes that while steps go on; the cost is what all of it adds to the steps' own time. The
share is of the time between checkpoints at the default interval.

    python benchmarks/checkpointing.py [--models caft_xs caft_b --rounds 3]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from scene_files import write_scenes
from train_loops import INTERVAL, SAVE_EVERY, DeepSpeedLoop, Settings

from caft.config import load_model_config
from pipelines.train.checkpoints.store import CheckpointStore, publish
from pipelines.train.config import CheckpointConfig

BATCHES = {"caft_xs": 32, "caft_b": 4}
SCENES, MIB = 512, 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(BATCHES), choices=list(BATCHES))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(
        f"{len(os.sched_getaffinity(0))} cores; median of {args.rounds}\n\n"
        "| model | ms per step | MiB | saved | s a step waited | s until whole | s it cost "
        f"| share at every {SAVE_EVERY:,} steps |\n|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    for model in args.models:
        task = (model, args.device, args.rounds)
        process = multiprocessing.get_context("spawn").Process(target=measure, args=task)
        process.start()
        process.join()


def measure(model: str, device: str, rounds: int) -> None:
    """Print the two rows of a model."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="caft-saving-") as folder:
        write_scenes(Path(folder) / "data", SCENES, load_model_config(model))
        precision = "bfloat16" if device == "cuda" else "float32"
        loop = DeepSpeedLoop(Settings(folder, model, BATCHES[model], device, precision))
        saves = Saves(loop, Path(folder) / "run")
        saves.beside_training(), saves.waiting()  # buffers are made, files are in the cache
        spent = {"beside training": saves.beside_training, "while it waits": saves.waiting}
        found = {how: [save() for _ in range(rounds)] for how, save in spent.items()}
        for how, rows in found.items():
            waited, whole, cost = (statistics.median(column) for column in zip(*rows, strict=True))
            print(
                f"| {model} | {1000 * saves.step_s:,.0f} | {saves.size / MIB:,.0f} | {how} "
                f"| {waited:.3f} | {whole:.2f} | {cost:.2f} "
                f"| {cost / (SAVE_EVERY * saves.step_s):.3%} |",
                flush=True,
            )


class Saves:
    """Ways to save one run; each call gives the seconds that a step waited, that passed until the
    checkpoint was whole, and that the steps took longer for it."""

    def __init__(self, loop: DeepSpeedLoop, output: Path) -> None:
        from pipelines.train.checkpoints.saver import Saver

        self._loop, self._output = loop, str(output)
        store = CheckpointStore(self._output)
        self._saver = Saver(store, CheckpointConfig(), loop.engine, loop.model, None, {})
        self._step = 0
        loop(INTERVAL)
        self._steps = INTERVAL * max(1, round(5 / loop(INTERVAL).step_s / INTERVAL))
        self.step_s = loop(self._steps).step_s

    @property
    def size(self) -> int:
        """Bytes of a checkpoint."""
        files = Path(self._output, "waited").rglob("*.safetensors")
        return sum(file.stat().st_size for file in files)

    def beside_training(self) -> tuple[float, float, float]:
        started = time.perf_counter()
        self._step += 1
        self._saver.save(self._step, {})
        waited = time.perf_counter() - started
        self._loop(self._steps)
        cost = time.perf_counter() - started - self._steps * self.step_s
        self._step += 1
        self._saver.save(self._step, {})  # which tells what the one before took
        whole = self._saver.metrics()["train/checkpoint_write_s"]
        self._loop(self._steps)
        return waited, whole, cost

    def waiting(self) -> tuple[float, float, float]:
        from pipelines.train.checkpoints.state import take_snapshot
        from pipelines.train.deepspeed.sharding import HostCopies

        started = time.perf_counter()
        snapshot = take_snapshot(self._loop.engine, self._loop.model, 1, HostCopies())
        publish(
            f"{self._output}/waited", lambda folder: snapshot.write(folder, self._loop.model, {})
        )
        waited = time.perf_counter() - started
        self._loop(self._steps)
        return waited, waited, time.perf_counter() - started - self._steps * self.step_s


if __name__ == "__main__":
    main()
