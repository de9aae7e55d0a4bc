"""A training step of the recipe on this machine: its parts, kernels, memory and largest batch.
The train stage's own engine and inputs, without Ray; one process for each card."""

from __future__ import annotations

import gzip
import itertools
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from gpu_free.batch import MEAN_TOKENS, PARTS, make_batch

from acceptance.machine import on_ranks, settle, timed
from caft.config import load_config, load_model_config
from caft.cost import Workload, flops
from caft.model import create_model
from pipelines.train.config import TrainConfig
from pipelines.train.inputs import DeviceBatch
from pipelines.train.telemetry import device_peak

RECIPE = Path(__file__).resolve().parents[2] / "configs" / "train" / "caft_b_30m.yaml"
GB, MS = 1e9, 1e3
LARGEST = 4096  # images of a card that are tried at most
# Words in the names of kernels, the first that fits.
KINDS = {
    "attention": ("flash", "fmha", "attention", "attn"),
    "collectives": ("nccl",),
    "copies": ("memcpy", "memset"),
    "convolutions": ("conv", "cudnn", "fprop", "dgrad", "wgrad"),
    "products": ("gemm", "cutlass", "nvjet", "cublas", "addmm", "::mm", "bmm"),
    "optimiser": ("adam", "multi_tensor"),
}
REST = "all else"


@dataclass(frozen=True)
class Asked:
    """How large a step is measured."""

    model: str = "caft_b"
    images: int = 256  # of each card
    compile: bool = True
    warm_steps: int = 5
    steps: int = 20
    recompute: bool = False


SMALL = Asked("caft_xs", images=8, compile=False, warm_steps=1, steps=2)


def step(workers: int, asked: Asked, out: str) -> dict[str, Any]:
    """The step's seconds, parts, memory, MFU and kernels, on every card at once."""
    return on_ranks(_step, workers, asked, out)


def largest_batch(asked: Asked, deadline: float) -> dict[str, Any]:
    """Images that one card holds, doubled until they do not fit, with their rates; until
    `deadline`, a time of the monotonic clock, no further one is begun.
    """
    found: dict[str, Any] = {"fits": 0, "rates": {}}
    images = asked.images
    while images <= LARGEST and time.monotonic() < deadline:
        tried = Asked(asked.model, images, False, 2, 4, asked.recompute)
        measured = on_ranks(_rate, 1, tried)
        if measured is None:
            found["does_not_fit"] = images
            break
        found["fits"], found["rates"][str(images)] = images, measured
        images *= 2
    return found


class Loop:
    """The train stage's step on one rank."""

    def __init__(self, device: torch.device, asked: Asked) -> None:
        from pipelines.train.deepspeed.engine import start_engine
        from pipelines.train.deepspeed.sharding import WeightAverage
        from pipelines.train.distributed import TrainingModel
        from pipelines.train.inputs import Sender, sent_ahead

        workers, rank = dist.get_world_size(), dist.get_rank()
        self.config = load_config(TrainConfig, str(RECIPE), self._overrides(asked, workers, device))
        torch.manual_seed(self.config.seed)
        self.model = create_model(load_model_config(self.config.model))
        self.model.recompute_activations(self.config.scaling.recompute_activations)
        self.trained = TrainingModel(
            self.model, self.config.block_size, asked.compile, self.config.batch_norm_block
        )
        self.engine = start_engine(self.trained, self.config)
        self.average = WeightAverage(self.model, self.config.average)  # type: ignore[arg-type]
        seeds = range(4 * rank, 4 * rank + 4)
        drawn = [make_batch(asked.images, "none", self.model.config, seed) for seed in seeds]
        sender = Sender(self.model, self.config, device)
        sender.prepare(drawn[0])
        self._batches = sent_ahead(itertools.cycle(drawn), sender, device)
        self._numbers = itertools.count()

    def _overrides(self, asked: Asked, workers: int, device: torch.device) -> list[str]:
        return [
            f"model={asked.model}",
            f"global_batch={asked.images * workers}",
            f"block_size={min(256, asked.images)}",
            f"batch_norm_images={min(256, asked.images)}",
            f"scaling.num_workers={workers}",
            f"ingest.lanes={workers}",
            f"scaling.use_gpu={device.type == 'cuda'}",
            f"scaling.compile={asked.compile}",
            f"scaling.recompute_activations={asked.recompute}",
            "optimizer.grad_clip=1.0",
            "average={decay: 0.999}",
        ]

    def step(self, batch: DeviceBatch | None = None) -> None:
        """One step; its share of the loss stays on the device."""
        from pipelines.train import step as steps

        number = next(self._numbers)
        given = next(self._batches) if batch is None else batch
        self.loss = steps.compute_gradients(
            self.engine, self.trained, given, number, self.config
        ).total
        steps.apply_gradients(self.engine, self.trained, 1e-6)
        self.average.update(number + 1)

    def first_step(self) -> dict[str, float]:
        """The loss of the first batch without a compiled function, and as it is then trained."""
        from pipelines.train.distributed import TrainingModel
        from pipelines.train.step import model_inputs

        batch = next(self._batches)
        given = model_inputs(self.engine, self.trained, batch, 0, self.config)
        plain = TrainingModel(
            self.model, self.config.block_size, False, self.config.batch_norm_block
        ).train()
        if self.model.superpixel_network is not None:  # which the line before made eager
            self.model.superpixel_network.compiled = self.config.scaling.compile
        device = torch.device(self.engine.device)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            loss = plain(*given).total
        self.step(batch)
        return {"plain": loss.item(), "trained": self.loss.item()}


class Parts:
    """Milliseconds of what a step calls, by events of the device's stream or the host's clock."""

    def __init__(self, loop: Loop) -> None:
        import pipelines.train.distributed as distributed
        import pipelines.train.step as step

        self._device = torch.device(loop.engine.device)
        self._spans: list[tuple[str, Any, Any]] = []
        self._undo: list[tuple[Any, str, Any]] = []
        for owner, attribute, part in (
            (step, "model_inputs", "inputs"),
            (loop.model, "superpixel_labels", "superpixels"),
            (loop.engine, "forward", "forward"),
            (distributed, "caft_loss", "loss forward"),
            (step, "backward", "backward"),
            (loop.engine, "step", "optimiser"),
            (loop, "step", "step"),
        ):
            self._name(owner, attribute, part)

    def _name(self, owner: Any, attribute: str, part: str) -> None:
        inner: Callable = getattr(owner, attribute)

        def call(*args: Any, **kwargs: Any) -> Any:
            begun = self._now()
            try:
                return inner(*args, **kwargs)
            finally:
                self._spans.append((part, begun, self._now()))

        self._undo.append((owner, attribute, inner))
        setattr(owner, attribute, call)

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def of(self, loop: Loop, steps: int) -> dict[str, float]:
        """Mean milliseconds of the parts of `steps` steps; what is inside another is taken off."""
        for _ in range(steps):
            loop.step()
        settle(self._device)
        found: dict[str, float] = defaultdict(float)
        for part, begun, ended in self._spans:
            ms = MS * (ended - begun) if isinstance(begun, float) else begun.elapsed_time(ended)
            found[part] += ms / steps
        for owner, attribute, inner in self._undo:
            setattr(owner, attribute, inner)
        whole = found.pop("step")
        found["inputs"] -= found["superpixels"]
        found["encode"] = found.pop("forward") - found["loss forward"]
        return {**found, "rest": whole - sum(found.values()), "step": whole}


def _step(device: torch.device, asked: Asked, out: str) -> dict[str, Any]:
    loop = Loop(device, asked)
    started = time.perf_counter()
    losses = loop.first_step()
    first_s = time.perf_counter() - started
    for _ in range(asked.warm_steps):
        loop.step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = timed(lambda: [loop.step() for _ in range(asked.steps)], device) / asked.steps
    peak_gb = torch.cuda.max_memory_allocated(device) / GB if device.type == "cuda" else 0.0
    work = Workload(MEAN_TOKENS, PARTS, loop.config.global_batch, loop.config.block_size)
    rate = device_peak(device, loop.config.deepspeed.precision).flop_per_s
    useful = flops(loop.model.config, work).training * asked.images / seconds
    parts = Parts(loop).of(loop, asked.steps)
    kinds, kernels = _profiled(loop, device, out) if dist.get_rank() == 0 else _unprofiled(loop)
    return {
        "model": asked.model,
        "images": asked.images,
        "workers": dist.get_world_size(),
        "compiled": asked.compile,
        "first_step_s": first_s,
        "step_ms": MS * seconds,
        "images_per_s": asked.images / seconds,
        "mfu": useful / rate if rate else None,
        "peak_gb": peak_gb,
        "losses": losses,
        "parts_ms": parts,
        "kinds_ms": kinds,
        "kernels": kernels,
    }


PROFILED = 3


def _unprofiled(loop: Loop) -> tuple[dict[str, float], list[Any]]:
    for _ in range(PROFILED):  # the others' part in the first rank's steps
        loop.step()
    return {}, []


def _profiled(loop: Loop, device: torch.device, out: str) -> tuple[dict[str, float], list[Any]]:
    """Milliseconds of a step by kind of kernel, and the ten kernels that cost most; the trace of
    the steps goes into `out`."""
    from torch.profiler import ProfilerActivity, profile

    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        for _ in range(PROFILED):
            loop.step()
        settle(device)
    trace = Path(out) / "step_trace.json"
    profiler.export_chrome_trace(str(trace))
    with trace.open("rb") as plain, gzip.open(f"{trace}.gz", "wb") as packed:
        shutil.copyfileobj(plain, packed)
    trace.unlink()
    kinds: dict[str, float] = defaultdict(float)
    rows = []
    for event in profiler.key_averages():
        spent = event.self_device_time_total if cuda else event.self_cpu_time_total
        on_device = not cuda or event.device_type == torch.autograd.DeviceType.CUDA
        if spent and on_device:
            ms = spent / 1e3 / PROFILED
            kinds[kind_of(event.key)] += ms
            rows.append([event.key[:90], round(event.count / PROFILED), round(ms, 3)])
    return dict(kinds), sorted(rows, key=lambda row: -row[2])[:10]


def kind_of(kernel: str) -> str:
    """What a kernel of this name is counted as."""
    low = kernel.lower()
    return next((kind for kind, words in KINDS.items() if any(w in low for w in words)), REST)


def _rate(device: torch.device, asked: Asked) -> dict[str, float] | None:
    """Images a second and peak memory; None where they do not fit."""
    try:
        loop = Loop(device, asked)
        for _ in range(asked.warm_steps):
            loop.step()
        seconds = timed(lambda: [loop.step() for _ in range(asked.steps)], device) / asked.steps
    except torch.OutOfMemoryError:
        return None
    peak = torch.cuda.max_memory_allocated(device) / GB if device.type == "cuda" else 0.0
    return {"images_per_s": asked.images / seconds, "peak_gb": peak}
