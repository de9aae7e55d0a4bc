"""The training ingest alone, beside a plain torch DataLoader and WebDataset on the same samples.

All sides give batches of the same shapes: crops (B, 3, 224, 224) uint8 and ids (B, 8, 77), on the
same cores, with the same crops, captions and tokenizer. Each lives in a process of its own, is
warm before it is measured, and takes its turn. Processor seconds are those of its process and all
its children, Ray's own included.

    python benchmarks/ingest.py [--images 2048 --epochs 4 --rounds 5] [--folder KEPT_SAMPLES]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
from ingest_files import write_samples
from ingest_parts import print_parts
from plain_ingest import PlainDataLoader, PlainWebDataset
from torch import Tensor

from caft.config import load_model_config
from pipelines.data.dataset import open_dataset
from pipelines.train.config import IngestConfig
from pipelines.train.ingest import index_row_groups, iter_batches
from pipelines.train.loader import Loader
from pipelines.train.plan import EpochPlan

MODEL = "caft_b"
BATCH, LANES, WINDOW_STEPS = 256, 4, 4
OBJECT_STORE_BYTES = 2 * 2**30
TARGET = 1.2

Pass = Callable[[int], Iterator[Tensor]]  # images (B, 3, S, S) of some epochs, batch by batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2048, help="a multiple of 256")
    parser.add_argument("--epochs", type=int, default=4, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, help="samples are kept here for another run")
    parser.add_argument("--parts-only", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="caft-ingest-") as temporary:
        folder = args.folder or Path(temporary)
        write_samples(folder, args.images)
        if not args.parts_only:
            compare(folder, args)
        print_parts(folder / "dataset", MODEL)


def compare(folder: Path, args: argparse.Namespace) -> None:
    sides = {name: start_side(name, folder, args) for name in SIDES}
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(args.rounds):
        for name, side in sides.items():
            side.send(args.epochs)
            spent[name].append(side.recv())
    for side in sides.values():
        side.send(0)
    report(spent, args)


def start_side(name: str, folder: Path, args: argparse.Namespace) -> Connection:
    """A side that is warm."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=serve, args=(there, name, folder, args.images, args.cores)).start()
    there.close()  # so that a side that fails ends the wait for it
    for _ in range(2):
        here.send(1)
        here.recv()
    return here


def serve(connection: Connection, name: str, folder: Path, images: int, cores: int) -> None:
    """One side in its own process: asked for some epochs, it answers with wall and CPU seconds."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    side = SIDES[name](folder, images, cores)
    while epochs := asked(connection):
        cpu, wall = processor_seconds(), time.perf_counter()
        seen = sum(len(batch) for batch in side(epochs))
        assert seen == epochs * images, f"{seen} of {epochs * images} images arrived"
        connection.send((time.perf_counter() - wall, processor_seconds() - cpu))


def asked(connection: Connection) -> int:
    try:
        return connection.recv()
    except EOFError:  # whoever asks has failed
        return 0


def report(spent: dict[str, list[tuple[float, float]]], args: argparse.Namespace) -> None:
    images, cores = args.images * args.epochs, args.cores
    print(
        f"{args.images:,} images of up to 512 px, {args.epochs} epoch(s), {cores} cores, "
        f"median of {args.rounds}, taking turns\n"
    )
    print("| side | images/s | per core | per processor second | ms of processor per image |")
    print("|---|---|---|---|---|")
    by_wall, by_cpu = {}, {}
    for name, runs in spent.items():
        wall, cpu = (statistics.median(column) for column in zip(*runs, strict=True))
        by_wall[name], by_cpu[name] = images / wall / cores, images / cpu
        print(
            f"| {name} | {images / wall:,.0f} | {by_wall[name]:,.0f} | {by_cpu[name]:,.0f} "
            f"| {1000 * cpu / images:.2f} |"
        )
    first = next(iter(spent))
    for rates, what in ((by_wall, "core"), (by_cpu, "processor second")):
        best = max(rate for name, rate in rates.items() if name != first)
        print(f"\nper {what}: {rates[first] / best:.2f} times the best other (target {TARGET})")


def processor_seconds() -> float:
    """Of this process and all below it, ended ones included."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        try:
            total += sum(process.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return total


def start_ray(cores: int) -> None:
    import ray

    ray.init(
        num_cpus=cores,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        logging_level="error",
    )


def ours(folder: Path, images: int, cores: int) -> Pass:
    start_ray(cores)
    dataset = open_dataset(str(folder / "dataset"))
    groups = index_row_groups(dataset, "train")
    settings = IngestConfig(lanes=LANES, window_steps=WINDOW_STEPS, loaders_per_worker=cores)
    loader = Loader(dataset.path, "train", load_model_config(MODEL), settings)
    plan = EpochPlan(groups, BATCH, LANES, WINDOW_STEPS, seed=0)

    def epochs(count: int) -> Iterator[Tensor]:
        steps = count * images // BATCH
        return (batch.images for batch in iter_batches(plan, loader, 0, 1, 0, steps))

    return epochs


SIDES: dict[str, Callable[[Path, int, int], Pass]] = {
    "ours (Ray Data)": ours,
    "DataLoader, OpenCV": lambda f, n, c: PlainDataLoader(f, "opencv", BATCH, c),
    "DataLoader, Pillow": lambda f, n, c: PlainDataLoader(f, "pillow", BATCH, c),
    "WebDataset, OpenCV": lambda f, n, c: PlainWebDataset(f, "opencv", BATCH, c),
    "WebDataset, Pillow": lambda f, n, c: PlainWebDataset(f, "pillow", BATCH, c),
}


if __name__ == "__main__":
    main()
