"""What the train stage costs on top of a bare loop, and what a second worker gives.

A bare PyTorch loop (batches from memory, or decoded by a DataLoader from the same files), the same
with DeepSpeed, and the full stage on one worker, on two with twice the batch (weak scaling) and on
two with the same batch (strong scaling). Each takes its turn and is warm before it is measured, in
a new process each time: one is some per cent faster than the next. A worker has one thread. Two
bare loops at once, which exchange nothing, show what a second core of this machine gives at best,
with and without decoding on it.

    python benchmarks/train_scaling.py [--steps 40 --rounds 3]
    python benchmarks/train_scaling.py --device cuda --model caft_b --batch 256 --workers 1
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from scene_files import write_scenes
from train_loops import SAVE_EVERY, BareLoop, DeepSpeedLoop, Settings, Spent, Stage

from caft.config import load_model_config

BARE, FILES, TWICE, TWICE_FILES, STAGE, WEAK, STRONG = (
    "bare PyTorch, memory",
    "bare PyTorch, DataLoader",
    "bare PyTorch, memory, two at once",
    "bare PyTorch, DataLoader, two at once",
    "train stage",
    "train stage, 2 workers, batch x 2",
    "train stage, 2 workers, same batch",
)
LOOPS: dict[str, Callable[[Settings], Callable[..., Spent]]] = {
    "memory": lambda settings: BareLoop(settings, from_files=False),
    "files": lambda settings: BareLoop(settings, from_files=True),
    "deepspeed": DeepSpeedLoop,
    "stage": Stage,
}
SIDES: dict[str, tuple[str, tuple[int, ...]]] = {  # loop, and of a stage: workers, times the batch
    BARE: ("memory", ()),
    FILES: ("files", ()),
    TWICE: ("memory", ()),
    TWICE_FILES: ("files", ()),
    "DeepSpeed, memory": ("deepspeed", ()),
    STAGE: ("stage", (1, 1)),
    WEAK: ("stage", (2, 2)),
    STRONG: ("stage", (2, 1)),
}
BESIDE = {TWICE: "memory", TWICE_FILES: "files"}  # the loop that runs at the same time
ON_TWO_CORES = (*BESIDE, WEAK, STRONG)
WARM_STEPS, PROBE_BATCH, STEP_S = 5, 16, 0.2
TARGETS = {"overhead": 0.05, "speed-up": 1.8, "waiting": 0.03}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="caft_xs")
    parser.add_argument("--batch", type=int, help="a multiple of 8; default: of about 200 ms")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--steps", type=int, default=40, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scenes", type=int, default=2048)
    parser.add_argument("--workers", type=int, default=2, choices=[1, 2], help="most of them")
    args = parser.parse_args()
    sides = [name for name in SIDES if args.workers == 2 or name not in ON_TWO_CORES]
    with tempfile.TemporaryDirectory(prefix="caft-scaling-") as folder:
        precision = "bfloat16" if args.device == "cuda" else "float32"
        cpus = max(4, len(os.sched_getaffinity(0)))
        write_scenes(Path(folder) / "data", args.scenes, load_model_config(args.model))
        settings = Settings(folder, args.model, PROBE_BATCH, args.device, precision, cpus)
        if args.batch is None:
            with running("memory", settings) as probe:
                probe.send((WARM_STEPS,))
                step_s = probe.recv().step_s
            args.batch = max(8, 8 * round(PROBE_BATCH * STEP_S / step_s / 8))
        settings = replace(settings, batch=args.batch)
        report(measure(sides, settings, args.steps, args.rounds), args)


def measure(
    sides: list[str], settings: Settings, steps: int, rounds: int
) -> dict[str, list[Spent]]:
    spent: dict[str, list[Spent]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name in sides:
            loop, options = SIDES[name]
            with ExitStack() as stack:
                names = [one for one in (BESIDE.get(name), loop) if one]
                loops = [stack.enter_context(running(one, settings)) for one in names]
                for connection in loops:
                    connection.send((steps, *options))
                spent[name].append([connection.recv() for connection in loops][-1])
    return spent


@contextmanager
def running(name: str, settings: Settings) -> Iterator[Connection]:
    """A loop that is warm, in a process of its own; it is gone afterwards."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, name, settings))
    process.start()
    there.close()  # so that a loop that fails ends the wait for it
    here.recv()
    yield here
    here.send(())
    process.join()


def serve(connection: Connection, name: str, settings: Settings) -> None:
    """One loop in its own process: asked for some steps, it answers with what they took."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    loop = LOOPS[name](settings)
    if name != "stage":  # that starts anew each time, and tells its warm-up apart
        loop(WARM_STEPS)
    connection.send("warm")
    while call := connection.recv():
        connection.send(loop(*call))


def report(spent: dict[str, list[Spent]], args: argparse.Namespace) -> None:
    def median(name: str, field: str) -> float:
        return statistics.median(getattr(one, field) for one in spent[name])

    device = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    print(
        f"\n{args.model} on {device}, batch {args.batch}, {len(os.sched_getaffinity(0))} cores, "
        f"one thread a worker; median of {args.rounds} runs of {args.steps} steps, taking turns\n"
    )
    print("| side | ms per step | over bare | images/s | waiting for data |\n|---|---|---|---|---|")
    bare = median(BARE, "step_s")
    for name in spent:
        seconds = median(name, "step_s")
        rate = batches(name) * args.batch / seconds
        over = f"{seconds / bare - 1:+.1%}" if name not in ON_TWO_CORES else ""
        print(
            f"| {name} | {1000 * seconds:,.1f} | {over} | {rate:,.0f} "
            f"| {median(name, 'waiting'):.1%} |"
        )
    whole, save = median(STAGE, "with_saves_s"), median(STAGE, "save_s")
    reading = median(FILES, "step_s")
    print(
        f"\nstage, a checkpoint every {SAVE_EVERY:,} steps included ({1000 * save:,.0f} ms each): "
        f"{whole / reading - 1:+.1%} over the bare loop that reads the same files (target: at most "
        f"{TARGETS['overhead']:.0%}), {whole / bare - 1:+.1%} over the one from memory; waiting "
        f"for data {median(STAGE, 'waiting'):.1%} (at most {TARGETS['waiting']:.0%})"
    )
    for name, alone in ((TWICE, BARE), (TWICE_FILES, FILES)):
        if name in spent:
            faster = 2 * median(alone, "step_s") / median(name, "step_s")
            print(f"{name}: {faster:.2f} times the images/s of one")
    for name, what in ((WEAK, "weak"), (STRONG, "strong")):
        if name in spent:
            faster = batches(name) * median(STAGE, "step_s") / median(name, "step_s")
            print(
                f"1 -> 2 workers, {what} scaling: {faster:.2f} times the images/s, efficiency "
                f"{faster / 2:.0%} (target: {TARGETS['speed-up']} times)"
            )


def batches(side: str) -> int:
    """How many times the batch of the bare loop a side takes in one step."""
    return 2 if side in BESIDE else SIDES[side][1][-1] if SIDES[side][1] else 1


if __name__ == "__main__":
    main()
