"""Whether this worker's GPU can be used, and what to change where it cannot.
Asked by each worker of a run on GPUs before anything is loaded."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from caft.errors import ConfigError

DRIVER = Path("/proc/driver/nvidia/version")
RDMA_DEVICES = Path("/dev/infiniband")  # of InfiniBand, RoCE and EFA alike
OLDEST_DRIVERS = {13: 580, 12: 525}  # that run a wheel of this CUDA, by NVIDIA's release notes


def require_gpu() -> None:
    """Raises ConfigError, naming driver, wheel and fix, where CUDA does not start."""
    if not torch.cuda.is_available():
        driver = DRIVER.read_text() if DRIVER.exists() else None
        raise ConfigError(
            f"scaling.use_gpu: {cuda_problem(torch.__version__, torch.version.cuda, driver)}"
        )


def network_problem(workers: int, workers_here: int, devices: Path = RDMA_DEVICES) -> str | None:
    """What makes workers on several machines slow: no fast network between them; None: it is there,
    or not needed.

    Args:
        workers: of the run, `workers_here` of them on this machine.
    """
    if workers == workers_here or devices.is_dir():
        return None
    return (
        f"workers sit on several machines, and this one has no {devices}: NCCL sends gradients "
        "over TCP; cluster/README.md says how to add EFA or InfiniBand"
    )


def cuda_problem(wheel: str, cuda: str | None, driver: str | None) -> str:
    """Why CUDA does not start, and the fix.

    Args:
        wheel: version of torch.
        cuda: that it was built for, as '13.0'; None: for none.
        driver: what the driver says of itself in `DRIVER`; None: there is none.
    """
    if cuda is None:
        return f"torch {wheel} is built without CUDA; install a wheel with it, or set it to false"
    named = f"torch {wheel} for CUDA {cuda}"
    found = re.search(r"Kernel Module.*?\s(\d+)(\.[\d.]+)", driver or "")
    if found is None:
        return f"{named} finds no NVIDIA driver on this node; install one, or set it to false"
    major, version = int(found[1]), found[1] + found[2]
    oldest = OLDEST_DRIVERS.get(int(cuda.split(".")[0]))
    if oldest is not None and major < oldest:
        return (
            f"driver {version} of this node is too old for {named}, which needs {oldest} or later; "
            "use a machine image with that driver, or torch for CUDA 12: make TORCH_INDEX="
            "https://download.pytorch.org/whl/cu126"
        )
    return (
        f"{named} does not start with driver {version}; give the container the GPU, and on GKE "
        "LD_LIBRARY_PATH=/usr/local/nvidia/lib64"
    )
