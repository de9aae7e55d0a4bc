"""Measures training on every worker and puts the workers' numbers together once an interval.
Between the loop, which tells it of batches and steps, and MLflow and the console (log.py)."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from caft.cost import Workload, flops
from caft.losses import CAFTLoss
from pipelines.train.config import TrainConfig
from pipelines.train.distributed import TrainingModel
from pipelines.train.inputs import DeviceBatch

# What a run logs, by name: every `log_every_steps` steps, over that interval.
METRICS = {
    "loss/total": "of the global batch, mean over the steps that were taken; the sum of its terms, "
    "each times its weight in the model's `losses.weights`",
    "loss/...": "a term of the loss by its name, unweighted",
    "train/lr": "learning rate of the last step",
    "train/epoch": "passes over the dataset, at the last step",
    "train/samples_seen": "images trained on so far",
    "train/gradient_norm": "of the whole gradient before clipping, mean",
    "train/gradient_norm_max": "the same, largest",
    "train/..._scale": "factor of the losses named, `part` or `whole`",
    "train/..._bias": "bias of the losses named",
    "train/step_s": "seconds per step",
    "train/images_per_s": "of all workers",
    "train/worker_images_per_s_min": "of the slowest worker",
    "train/worker_images_per_s_median": "of the median worker",
    "train/worker_images_per_s_max": "of the fastest worker",
    "train/tokens_per_s": "of all workers, without padding",
    "train/tokens_per_step": "of all workers, without padding",
    "train/mfu": "useful FLOP (`python -m caft.model describe`) over the peak of all devices; the "
    "tag `mfu_peak` says which peak, and whether it is published or was measured. Not known where "
    "parameters are frozen",
    "train/input_wait_fraction": "share of the time spent waiting for data, mean of the workers",
    "train/input_wait_fraction_max": "the same, of the worker that waited most",
    "train/worker_skew": "largest less smallest time that workers compute on their own before "
    "they first need each other, as a share of the interval",
    "train/host_memory_gib": "memory of the worker with most, without what it shares with others, "
    "such as Ray's object store",
    "train/device_memory_gib": "peak of the interval, of the device with most",
    "train/checkpoint_blocked_s": "seconds that steps waited for a checkpoint",
    "train/checkpoint_write_s": "seconds that writing the checkpoint before took",
    "train/skipped_steps": "steps left out as not finite, so far",
    "train/overflowed_steps": "steps whose float16 gradients overflowed, so far",
    "train/loss_scale": "of float16",
    "eval/...": "held-out scores, at the step of their weights",
    "system/...": "the machine of rank 0; GPUs too with `nvidia-ml-py` installed",
}
GIB = 2**30
APPLIED = "applied"  # steps whose losses are in the sums
# What a worker tells the others of its interval, beside its losses.
SHARED = (
    "seconds", "waited_s", "alone_s", "images", "tokens", "texts", "host_bytes", "device_bytes",
    "peak_flop_per_s",
)  # fmt: skip
# TFLOP/s of dense products, sums in float32: bfloat16 on tensor cores, float32 off them (torch
# leaves TF32 out unless told). From NVIDIA's data sheets; the first name that fits counts.
PUBLISHED = {
    "GH200": (989.0, 67.0),
    "B200": (2250.0, 75.0),
    "H200": (989.0, 67.0),
    "H100 PCIe": (756.0, 51.0),
    "H100 NVL": (835.0, 60.0),
    "H100": (989.0, 67.0),
    "A100": (312.0, 19.5),
    "L40S": (362.0, 91.6),
    "L4": (121.0, 30.3),
    "A10": (125.0, 31.2),
}
TERA = 1e12
MATRIX, ROUNDS = 1024, 5  # edge and number of the products that a CPU is measured by


class Telemetry:
    """One worker's measurements. Sums of what the device computes stay on the device, and clocks
    run on the device too, so that between two calls of `take` the host never waits for it."""

    def __init__(
        self,
        config: TrainConfig,
        trained: TrainingModel,
        steps_per_epoch: int,
        device: torch.device,
    ) -> None:
        self._config, self._model, self._device = config, trained.model, device
        self._steps_per_epoch = steps_per_epoch
        self._names: tuple[str, ...] = ()  # of the loss's terms and its total, once it is known
        self.peak = device_peak(device, config.deepspeed.precision)
        self._alone = _Stopwatch(device)
        trained.before_exchange = self._alone.stop
        self._restart()

    def watch(self, batches: Iterator[DeviceBatch]) -> Iterator[DeviceBatch]:
        """The same batches, with what is in them and how long they were waited for counted; the
        first interval starts when the first of them is asked for."""
        self._restart()
        while True:
            self._alone.start()
            asked = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            self._waited_s += time.perf_counter() - asked
            self._images += len(batch.images)
            self._tokens += batch.tokens
            self._parts = batch.host.tokens.shape[1]
            self._texts += len(batch.images) * self._parts
            yield batch

    def add(
        self,
        loss: CAFTLoss,
        gradient_norm: Tensor | float | None,
        skipped: Tensor | None = None,
    ) -> None:
        """Count a step.

        Args:
            loss: this worker's share of it.
            gradient_norm: of the whole gradient, before clipping, where the optimiser knows it.
            skipped: a boolean scalar: whether the weights were left as they are, because the step
                was not finite. Its losses then have no place in a mean.
        """
        losses = loss.terms | {"total": loss.total}
        row = torch.stack([*(value.detach() for value in losses.values()), loss.total.new_ones(())])
        if skipped is not None:
            row = torch.where(skipped.to(self._device, non_blocking=True), 0.0, row)
        self._losses += row
        self._names = tuple(losses)
        self._steps += 1
        if gradient_norm is not None:
            self._norms.append(torch.as_tensor(gradient_norm, device=self._device).float())

    def take(self, step: int, lr: float) -> dict[str, float]:
        """All metrics of the interval that ends with `step`, the same on every worker; starts the
        next interval. Every worker must call it."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # steps are done when the clock is read
        workers = self._exchange(self._own())
        metrics = self._loss_means(workers) | self._rates(workers)
        metrics |= self._gradient_norms() | self._model_scalars()
        metrics |= {
            "train/lr": lr,
            "train/epoch": step / self._steps_per_epoch,
            "train/samples_seen": float(step * self._config.global_batch),
        }
        self._restart()
        return metrics

    def _own(self) -> list[float]:
        """The values of SHARED on this worker."""
        device_bytes = 0
        if self._device.type == "cuda":
            device_bytes = torch.cuda.max_memory_allocated(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
        return [
            time.perf_counter() - self._since,
            self._waited_s,
            self._alone.take(),
            self._images,
            self._tokens,
            self._texts,
            _own_bytes(),
            device_bytes,
            self.peak.flop_per_s,
        ]

    def _exchange(self, own: list[float]) -> dict[str, np.ndarray]:
        """Sums of losses, APPLIED and the values of SHARED by name, (workers,) each."""
        told = torch.tensor(own, dtype=torch.float64).to(self._device)
        row = torch.cat([self._losses.double(), told])
        rows = [row]
        if dist.is_initialized():
            rows = [torch.empty_like(row) for _ in range(dist.get_world_size())]
            dist.all_gather(rows, row)
        columns = torch.stack(rows).cpu().numpy().T
        return dict(zip((*self._names, APPLIED, *SHARED), columns, strict=True))

    def _loss_means(self, workers: dict[str, np.ndarray]) -> dict[str, float]:
        """Workers' shares of a loss add up to the loss of the global batch. NaN if all steps were
        skipped."""
        applied = float(workers[APPLIED][0]) or math.nan
        return {f"loss/{name}": float(workers[name].sum()) / applied for name in self._names}

    def _rates(self, workers: dict[str, np.ndarray]) -> dict[str, float]:
        seconds = float(workers["seconds"].mean())
        step_s = seconds / self._steps
        images_per_s = workers["images"] / workers["seconds"]
        waited = workers["waited_s"] / workers["seconds"]
        alone = workers["alone_s"]
        tokens, texts = float(workers["tokens"].sum()), float(workers["texts"].sum())
        rates = {
            "train/step_s": step_s,
            "train/images_per_s": float(workers["images"].sum()) / seconds,
            "train/worker_images_per_s_min": float(images_per_s.min()),
            "train/worker_images_per_s_median": float(np.median(images_per_s)),
            "train/worker_images_per_s_max": float(images_per_s.max()),
            "train/tokens_per_s": tokens / seconds,
            "train/tokens_per_step": tokens / self._steps,
            "train/input_wait_fraction": float(waited.mean()),
            "train/input_wait_fraction_max": float(waited.max()),
            "train/worker_skew": float(alone.max() - alone.min()) / seconds,
            "train/host_memory_gib": float(workers["host_bytes"].max()) / GIB,
        }
        if self._device.type == "cuda":
            rates["train/device_memory_gib"] = float(workers["device_bytes"].max()) / GIB
        peaks = workers["peak_flop_per_s"]
        if peaks.all() and all(p.requires_grad for p in self._model.parameters()):
            flop = self._flop_of_a_sample(tokens / texts) * float(workers["images"].sum())
            rates["train/mfu"] = flop / seconds / float(peaks.sum())
        return rates

    def _flop_of_a_sample(self, tokens_of_a_text: float) -> float:
        workload = Workload(
            tokens_of_a_text, self._parts, self._config.global_batch, self._config.block_size
        )
        return flops(self._model.config, workload).training

    def _gradient_norms(self) -> dict[str, float]:
        """A step whose norm is infinite or no number was not taken, and has no place in a mean."""
        norms = torch.stack(self._norms).tolist() if self._norms else []
        finite = [norm for norm in norms if math.isfinite(norm)]
        if not finite:
            return {}
        return {
            "train/gradient_norm": sum(finite) / len(finite),
            "train/gradient_norm_max": max(finite),
        }

    def _model_scalars(self) -> dict[str, float]:
        scales, biases = self._model.scales(), self._model.biases()
        named = {f"train/{name}_scale": scale for name, scale in scales.items()}
        return named | {f"train/{name}_bias": bias for name, bias in biases.items()}

    def _restart(self) -> None:
        self._since = time.perf_counter()
        self._losses: Any = 0.0  # sums of what _names name, and the number of steps in them
        self._norms: list[Tensor] = []
        self._steps, self._waited_s = 0, 0.0
        self._images, self._tokens, self._texts, self._parts = 0, 0, 0, 0


def losses_of(metrics: Mapping[str, float]) -> dict[str, float]:
    """The loss terms among an interval's metrics, as a checkpoint's manifest keeps them."""
    return {name: value for name, value in metrics.items() if name.startswith("loss/")}


class _Stopwatch:
    """Seconds between pairs of moments in the device's own order of work.

    A worker starts it at a step's begin and stops it where it first needs the others. Only up to
    there its time is its own: later on, all wait for the slowest.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._pairs: list[tuple[Any, Any]] = []
        self._started: Any = None

    def start(self) -> None:
        self._started = self._now()

    def stop(self) -> None:
        """The second moment; a pass that no step began is not timed."""
        if self._started is not None:
            self._pairs.append((self._started, self._now()))
            self._started = None

    def take(self) -> float:
        """Seconds of all pairs since the last call; the device must have come to their end."""
        pairs, self._pairs = self._pairs, []
        if self._on_gpu:
            return sum(start.elapsed_time(stop) for start, stop in pairs) / 1000
        return sum(stop - start for start, stop in pairs)

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@dataclass(frozen=True)
class Peak:
    """The most FLOP/s of one worker, and how that is known; 0 where it is not."""

    flop_per_s: float
    known_from: str


def device_peak(device: torch.device, precision: str) -> Peak:
    """The peak of `device` in the precision that training multiplies in.

    Args:
        precision: as `DeepSpeedConfig.precision` names them.
    """
    if device.type == "cpu":
        dtype = torch.float32 if precision == "float32" else torch.bfloat16
        return Peak(_measured(dtype), f"measured, {torch.get_num_threads()} CPU threads")
    name = torch.cuda.get_device_name(device)
    rate = published_rate(name, precision)
    if rate is None:
        return Peak(0.0, f"unknown for {name}")
    return Peak(rate, f"published for {name}")


def published_rate(device_name: str, precision: str) -> float | None:
    """FLOP/s of a GPU by the name that CUDA gives it; None for one that is not in the table."""
    for name, (low, full) in PUBLISHED.items():
        words = r"\W(?:.*\W)?".join(map(re.escape, name.split()))
        if re.search(rf"\b{words}\b", device_name):
            return TERA * (full if precision == "float32" else low)
    return None


def _measured(dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of several products, on the threads that this process trains with."""
    matrix = torch.randn(MATRIX, MATRIX).to(dtype)
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - started)
    return 2 * MATRIX**3 / min(seconds)


def _own_bytes() -> int:
    """Resident memory that is this process's alone; its pages of Ray's object store, which grow
    until it has read all of that, are not."""
    found = psutil.Process().memory_info()
    return found.rss - getattr(found, "shared", 0)
