"""One training step of CAFT-B: a plain path that computes as the reference does, against `caft`.

Same weights, same images, same captions, same run, the sides taking turns. Superpixels are given
to both. The plain path pads every sub-caption to 77 tokens, projects queries once per image and
samples farthest points step by step in float64.

    python benchmarks/train_step.py [--device cuda --batch 256 --compile] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from plain_caft import PlainCAFT
from plain_weights import CAFT_B, random_state_dict
from torch import Tensor

import caft
from caft.captions import JOINER, split_sentences
from caft.config import SuperpixelConfig
from caft.cost import Workload, flops
from caft.losses import caft_loss, draw_negatives
from caft.packing import COMPILED_ROW_MULTIPLE
from caft.superpixels import superpixel_labels
from caft.tokenizer import load_tokenizer
from caft.transforms import normalise

CAPTIONS = Path(__file__).parent / "data" / "iiw_docci_test.jsonl"
CONTEXT = CAFT_B["text_cfg"]["context_length"]
PARTS = ("image forward", "text forward", "loss", "backward", "optimiser")
LR = 1e-6
MATRIX = 4096  # edge of the matrices whose product gives the machine's rate
GIGA, TERA, MEBI = 1e9, 1e12, 2**20


@dataclass
class Inputs:
    images: Tensor  # (B, 3, 224, 224) uint8
    superpixels: Tensor  # (B, 224, 224)
    tokens: Tensor  # (B, K, 77) on the host
    negatives: Tensor  # (B, B-1)

    @property
    def real_tokens(self) -> float:
        """Mean tokens of a sub-caption, start and end included."""
        return (self.tokens.argmax(dim=-1) + 1).double().mean().item()


Step = Callable[[Inputs], dict[str, float]]  # seconds by part


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--parts", type=int, default=8, help="sub-captions of an image")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="torch.compile our side")
    args = parser.parse_args()
    names = ["plain float32", "ours float32", "ours bfloat16"]
    inputs = make_inputs(args.batch, args.parts, args.device)
    sides = {name: make_side(name, args) for name in names}
    times: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(args.rounds + 1):
        for name, step in sides.items():
            parts = step(inputs)
            if turn:  # the first is warm-up
                times[name].append(parts)
    text = {name: text_seconds(name, inputs, args) for name in names}
    memory = {name: peak_memory(name, args) for name in names}
    print_tables(args, inputs, times, text, memory)


def make_inputs(batch: int, parts: int, device: str) -> Inputs:
    """Random images with SEEDS superpixels; real sub-captions of one or two sentences."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (batch, 3, 14, 14), dtype=np.uint8)
    images = torch.from_numpy(coarse.repeat(16, axis=2).repeat(16, axis=3))
    lines = CAPTIONS.read_text(encoding="utf-8").splitlines()
    captions = [split_sentences(json.loads(line)["caption"]) for line in lines]
    drawn = []
    for n in range(batch * parts):
        sentences = captions[n // parts % len(captions)]
        size = int(rng.integers(1, 3))
        start = int(rng.integers(max(1, len(sentences) - size + 1)))
        drawn.append(JOINER.join(sentences[start : start + size]))
    short = load_tokenizer("clip")(drawn, CONTEXT)
    tokens = torch.zeros(len(drawn), CONTEXT, dtype=torch.long)
    tokens[:, : short.shape[1]] = short
    return Inputs(
        images.to(device),
        superpixel_labels(images, SuperpixelConfig(method="seeds")).to(device),
        tokens.view(batch, parts, CONTEXT),
        draw_negatives(batch, parts, 0, batch),
    )


def make_side(name: str, args: argparse.Namespace) -> Step:
    weights = random_state_dict(CAFT_B, seed=0)
    if name.startswith("plain"):
        return PlainStep(weights, args.device)
    return OurStep(weights, args.device, name.endswith("bfloat16"), args.compile)


class PlainStep:
    """Side (a): everything padded, per pair and step by step."""

    def __init__(self, weights: dict[str, Tensor], device: str) -> None:
        self.device = device
        self.model = PlainCAFT({k: v.to(device) for k, v in weights.items()}, CAFT_B)
        self.optimizer = torch.optim.AdamW(self.model.parameters.values(), lr=LR)

    def __call__(self, inputs: Inputs) -> dict[str, float]:
        clock = Clock(self.device)
        images = self.model.encode_image(
            normalise(inputs.images), inputs.superpixels, training=True
        )
        clock.lap("image forward")
        texts = self.model.encode_text(inputs.tokens.to(self.device))
        clock.lap("text forward")
        loss = self.model.losses(images, texts, inputs.negatives)["loss_total"]
        clock.lap("loss")
        loss.backward()
        clock.lap("backward")
        self.optimizer.step()
        self.optimizer.zero_grad()
        clock.lap("optimiser")
        return clock.seconds

    def text(self, inputs: Inputs) -> None:
        texts = self.model.encode_text(inputs.tokens.to(self.device))
        (texts["part_text"].sum() + texts["whole_text"].sum()).backward()


class OurStep:
    """Side (b): `caft` as the train stage runs it, packing on the host included."""

    def __init__(self, weights: dict[str, Tensor], device: str, bf16: bool, compiled: bool) -> None:
        self.device, self.bf16 = device, bf16
        self.model = caft.from_reference(weights, CAFT_B).to(device).train()
        self.model.image_encoder.stem.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LR, fused=True)
        self.row_multiple = COMPILED_ROW_MULTIPLE if compiled else 1
        wrap = (lambda f: torch.compile(f, fullgraph=True, dynamic=False)) if compiled else id_of
        self.encode_image = wrap(self.model.encode_image)
        self.encode_text = wrap(self.model.encode_text)
        self.loss = wrap(caft_loss)

    def __call__(self, inputs: Inputs) -> dict[str, float]:
        clock = Clock(self.device)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            images = self.encode_image(normalise(inputs.images), inputs.superpixels)
            clock.lap("image forward")
            texts = self.encode_text(self.pack(inputs))
            clock.lap("text forward")
            loss = self.loss(images, texts, self.model, inputs.negatives).total
            clock.lap("loss")
        loss.backward()
        clock.lap("backward")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.model.clamp_scales_()
        clock.lap("optimiser")
        return clock.seconds

    def text(self, inputs: Inputs) -> None:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            texts = self.encode_text(self.pack(inputs))
        (texts.parts.float().sum() + texts.whole.float().sum()).backward()

    def pack(self, inputs: Inputs):
        packed = self.model.pack_texts(inputs.tokens, self.row_multiple)
        return packed.to(self.device, non_blocking=True)


class Clock:
    """Seconds between laps, the device's work included."""

    def __init__(self, device: str) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device
        self._last = self._now()

    def lap(self, name: str) -> None:
        now = self._now()
        self.seconds[name], self._last = now - self._last, now

    def _now(self) -> float:
        if self._device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def id_of(function: Callable) -> Callable:
    return function


def text_seconds(name: str, inputs: Inputs, args: argparse.Namespace) -> float:
    """Median seconds of the text part alone, forward and backward."""
    side = make_side(name, args)
    spent = []
    for _ in range(args.rounds + 1):
        clock = Clock(args.device)
        side.text(inputs)
        clock.lap("text")
        spent.append(clock.seconds["text"])
    return statistics.median(spent[1:])


def peak_memory(name: str, args: argparse.Namespace) -> float:
    """Bytes that two steps take at most beyond the model's own, in a process of their own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory, (name, args))


def _peak_memory(name: str, args: argparse.Namespace) -> float:
    inputs, side = make_inputs(args.batch, args.parts, args.device), make_side(name, args)
    if args.device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        side(inputs)
        return torch.cuda.max_memory_allocated() - before
    side(inputs)  # optimiser moments and gradients are there from now on
    Path("/proc/self/clear_refs").write_text("5")  # starts the high-water mark anew
    before = resident("VmRSS")
    side(inputs)
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """Bytes of this process in memory: now (VmRSS), or at most so far (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product: what this machine can do at most."""
    a = torch.randn(MATRIX, MATRIX, device=device).to(dtype)
    best = float("inf")
    for _ in range(4):
        clock = Clock(device)
        a @ a
        clock.lap("product")
        best = min(best, clock.seconds["product"])
    return 2 * MATRIX**3 / best


def print_tables(
    args: argparse.Namespace,
    inputs: Inputs,
    times: dict[str, list[dict[str, float]]],
    text: dict[str, float],
    memory: dict[str, float],
) -> None:
    device = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    work = Workload(inputs.real_tokens, args.parts, args.batch, args.batch)
    flop = args.batch * flops(caft.create_model("caft_b").config, work).training
    rates = {
        "float32": matrix_rate(args.device, torch.float32),
        "bfloat16": matrix_rate(args.device, torch.bfloat16),
    }
    print(
        f"CAFT-B, one step on {device} ({torch.get_num_threads()} threads): {args.batch} images, "
        f"{args.parts} sub-captions of {inputs.real_tokens:.0f} tokens each (padded: {CONTEXT})"
    )
    print(f"compiled: {'yes' if args.compile else 'no'}; median of {args.rounds}, taking turns\n")
    total = {
        name: statistics.median(sum(parts.values()) for parts in runs)
        for name, runs in times.items()
    }
    baseline = next(iter(times))
    print("| milliseconds | " + " | ".join(times) + " |\n|---|" + "---|" * len(times))
    for part in PARTS:
        shown = [statistics.median(run[part] for run in runs) for runs in times.values()]
        print(f"| {part} | " + " | ".join(f"{1000 * s:,.0f}" for s in shown) + " |")
    print("| whole step | " + " | ".join(f"{1000 * total[n]:,.0f}" for n in times) + " |")
    print("| faster by | " + " | ".join(f"{total[baseline] / total[n]:.2f}" for n in times) + " |")
    print("| text alone | " + " | ".join(f"{1000 * text[n]:,.0f}" for n in times) + " |")
    print(
        "| text faster by | " + " | ".join(f"{text[baseline] / text[n]:.2f}" for n in times) + " |"
    )
    print("| images/s | " + " | ".join(f"{args.batch / total[n]:.2f}" for n in times) + " |")
    useful = [flop / total[n] for n in times]
    print("| useful GFLOP/s | " + " | ".join(f"{u / GIGA:,.0f}" for u in useful) + " |")
    shares = [u / rates[n.split()[-1]] for n, u in zip(times, useful, strict=True)]
    print("| of the matrix rate | " + " | ".join(f"{s:.0%}" for s in shares) + " |")
    print("| peak MiB | " + " | ".join(f"{memory[n] / MEBI:,.0f}" for n in times) + " |")
    print(
        f"\nUseful: {flop / TERA:.2f} TFLOP a step on real tokens, forward and backward. Matrix "
        f"rate of this machine: {rates['float32'] / GIGA:,.0f} GFLOP/s in float32, "
        f"{rates['bfloat16'] / GIGA:,.0f} in bfloat16. Peak: beyond inputs, weights and imports."
    )


if __name__ == "__main__":
    main()
