"""Bytes that a training step exchanges, and the step time that follows on three networks.

Arithmetic on `communication_model`, whose bytes tests/train/test_communication.py holds
against those of two real workers. Times are predictions, for the networks and the rate of a GPU
that are printed with them.

    python benchmarks/communication.py [--model caft_b --gpu-images-per-s 1000]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from communication_model import Exchange, Network, Step, step_time

from caft.config import ModelConfig, load_model_config

WORKERS = (8, 64, 256)
MEGA, GIGA, GIGABIT = 1e6, 1e9, 1e9 / 8
NETWORKS = (
    Network("NVLink", 1024, 450 * GIGA, 450 * GIGA, 2e-6, 2e-6),
    Network("InfiniBand", 8, 450 * GIGA, 8 * 400 * GIGABIT, 2e-6, 5e-6),
    Network("Ethernet", 8, 450 * GIGA, 100 * GIGABIT, 2e-6, 25e-6),
)
ASSUMED = (
    "NVLink: 450 GB/s per GPU and direction, as if all GPUs were one NVLink domain",
    "InfiniBand: nodes of 8 GPUs, NVLink inside, 8 cards of 400 Gbit/s between nodes",
    "Ethernet: nodes of 8 GPUs, NVLink inside, one card of 100 Gbit/s between nodes",
    "Rings reach 80% of a link; a hop takes 2 us in a node, 5 (InfiniBand) or 25 us between nodes",
    "Weights and their gradients travel in float32, embeddings in bfloat16",
    "At ZeRO 0 gradients travel during backward, two thirds of the computation, at ZeRO 1 after it",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="caft_b")
    parser.add_argument("--global-batch", type=int, default=2048, help="as in the recipes")
    parser.add_argument("--images-per-gpu", type=int, default=256, help="of the second table")
    parser.add_argument("--parts", type=int, default=8, help="sub-captions of an image")
    parser.add_argument("--gpu-images-per-s", type=float, default=1000.0, help="one GPU alone")
    args = parser.parse_args()
    model = load_model_config(args.model)
    print_bytes(model, args)
    print("Assumed:\n")
    print("\n".join(f"- {line}" for line in ASSUMED))
    print(f"- A GPU alone trains {args.gpu_images_per_s:,.0f} images/s\n")
    print(f"Step time, {args.global_batch:,} images in all:\n")
    print_times(model, args, dict.fromkeys(WORKERS, args.global_batch))
    print(f"\nStep time, {args.images_per_gpu:,} images per GPU:\n")
    print_times(model, args, {n: n * args.images_per_gpu for n in WORKERS})


def exchanges(
    model: ModelConfig, args: argparse.Namespace, global_batch: int, workers: int, stage: int
) -> tuple[Exchange, ...]:
    step = Step(model, global_batch, args.parts, workers, stage, feature_bytes=2)
    return step.exchanges()


def print_bytes(model: ModelConfig, args: argparse.Namespace) -> None:
    print(f"{model.name}, {args.global_batch:,} images of {args.parts} sub-captions, a step:\n")
    print("| what | how | MB | MB sent by each of " + " | ".join(map(str, WORKERS)) + " |")
    print("|---|---|---|" + "---|" * len(WORKERS))
    batch = args.global_batch
    for same in zip(*(exchanges(model, args, batch, n, 1) for n in WORKERS), strict=True):
        row = columns(e.sent_bytes(n) for e, n in zip(same, WORKERS, strict=True))
        first = same[0]
        print(f"| {first.name} | {first.collective} | {first.payload_bytes / MEGA:,.1f} | {row} |")
    for stage, what in ((0, "all but weights: ZeRO 0"), (1, "all: ZeRO 1 and 2")):
        row = columns(
            sum(e.sent_bytes(n) for e in exchanges(model, args, batch, n, stage)) for n in WORKERS
        )
        print(f"| {what} | | | {row} |")
    print()


def columns(sizes: Iterable[float]) -> str:
    return " | ".join(f"{size / MEGA:,.1f}" for size in sizes)


def print_times(model: ModelConfig, args: argparse.Namespace, batches: dict[int, int]) -> None:
    print(
        "| GPUs | network | compute ms | ZeRO 0: step ms | of ideal | ZeRO 1: step ms | of ideal |"
    )
    print("|---|---|---|---|---|---|---|")
    for workers, batch in batches.items():
        compute = batch / workers / args.gpu_images_per_s
        by_stage = [exchanges(model, args, batch, workers, stage) for stage in (0, 1)]
        for network in NETWORKS:
            steps = [step_time(sent, workers, network, compute) for sent in by_stage]
            row = [f"{1000 * s.whole:,.1f} | {compute / s.whole:.0%}" for s in steps]
            print(f"| {workers} | {network.name} | {1000 * compute:,.1f} | {' | '.join(row)} |")


if __name__ == "__main__":
    main()
