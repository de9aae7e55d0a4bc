"""Speed and memory of a training step by batch, ZeRO stage and recomputed activations.

The train stage's own step and engine on one device, from memory. Batches double until one does not
fit; the largest that fits is then found to an eighth. Every measurement has a process of its own.

    python benchmarks/train_batches.py [--model caft_b --device cuda --batch 128]
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import resource
import tempfile
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from scene_files import write_scenes
from train_loops import DeepSpeedLoop, Settings, Windows

from caft.config import load_model_config
from caft.cost import Workload, flops
from pipelines.train.ingest import Batch
from pipelines.train.telemetry import device_peak

WARM_STEPS, STEPS = 3, 10
DECODED, SCENES = 32, 512
GIB = 2**30


@dataclass(frozen=True)
class Measured:
    """One row of the table."""

    images_per_s: float
    mfu: float
    peak_gib: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="caft_b")
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=128, help="the first; a multiple of 8")
    parser.add_argument("--most", type=int, default=8192, help="batch to stop at")
    parser.add_argument("--zero-stages", type=int, nargs="+", default=[0, 1, 2, 3])
    args = parser.parse_args()
    print("| ZeRO | recomputed | batch | images/s | MFU | peak GiB |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="caft-batches-") as folder:
        base = Settings(folder, args.model, args.batch, args.device, args.precision)
        write_scenes(Path(folder) / "data", SCENES, load_model_config(args.model))
        for zero_stage in args.zero_stages:
            for recompute in (False, True):
                search(replace(base, zero_stage=zero_stage, recompute=recompute), args.most)


def search(settings: Settings, most: int) -> None:
    """Print a row for each batch tried, up to the largest that fits."""
    fits, batch = 0, settings.batch
    while batch <= most and tried(replace(settings, batch=batch)):
        fits, batch = batch, 2 * batch
    if fits == 0 or batch > most:
        return
    step = fits // 8 // 8 * 8 or 8
    low, high = fits, batch  # the one fits, the other does not
    while high - low > step:
        middle = (low + high) // 2 // 8 * 8
        if tried(replace(settings, batch=middle)):
            low = middle
        else:
            high = middle


def tried(settings: Settings) -> bool:
    """Print the row of one batch; whether it fits."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=answer, args=(there, settings))
    process.start()
    there.close()
    try:
        measured = here.recv()
    except EOFError:
        process.join()
        raise SystemExit(f"a measurement ended with exit code {process.exitcode}") from None
    process.join()
    numbers = "does not fit | | |"
    if measured is not None:
        numbers = f"{measured.images_per_s:,.1f} | {measured.mfu:.1%} | {measured.peak_gib:.1f} |"
    recomputed = "yes" if settings.recompute else "no"
    print(f"| {settings.zero_stage} | {recomputed} | {settings.batch} | {numbers}", flush=True)
    return measured is not None


def answer(connection: Connection, settings: Settings) -> None:
    try:
        connection.send(measure(settings))
    except torch.OutOfMemoryError:
        connection.send(None)


def measure(settings: Settings) -> Measured:
    batch = make_batch(settings)
    loop = DeepSpeedLoop(settings, itertools.repeat(batch))
    loop(WARM_STEPS)
    if settings.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rate = settings.batch / loop(STEPS).step_s
    work = Workload(
        float((batch.tokens.argmax(dim=-1) + 1).double().mean()),
        batch.tokens.shape[1],
        settings.batch,
        settings.batch,
    )
    peak = device_peak(torch.device(settings.device), settings.precision).flop_per_s
    flop = flops(load_model_config(settings.model), work).training
    peak_bytes = (
        torch.cuda.max_memory_allocated()
        if settings.device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return Measured(rate, rate * flop / peak if peak else float("nan"), peak_bytes / GIB)


def make_batch(settings: Settings) -> Batch:
    """A few decoded samples, again and again: a step's cost does not depend on what they show."""
    few = next(iter(Windows(replace(settings, batch=DECODED))))
    rows = torch.arange(settings.batch) % DECODED
    superpixels = None if few.superpixels is None else few.superpixels[rows]
    return Batch(few.images[rows], superpixels, few.tokens[rows])


if __name__ == "__main__":
    main()
