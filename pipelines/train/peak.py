"""What a worker's device computes at most: a published rate for GPUs, a measured one for CPUs.
Telemetry divides by it; a share of an unknown rate is not reported at all."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import torch

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
