"""The machine itself: driver, cards and their health, what the host has, the link between cards.
The first sections of an acceptance; nothing of the model is built for them."""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from pipelines.git import revision
from pipelines.train.gpu import DRIVER, cuda_problem
from pipelines.train.gpu_health import faults

GIB, MIB = 2**30, 2**20
BUCKET_BYTES, WARM, TIMES = 32 * MIB, 3, 10


def environment(workers: int) -> dict[str, Any]:
    """Versions, cards and the host. `problem` names what keeps CUDA from starting, or ''."""
    driver = DRIVER.read_text() if DRIVER.exists() else None
    cuda = torch.cuda.is_available()
    found: dict[str, Any] = {
        "revision": revision(Path(__file__).parent),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "driver": (driver or "none").splitlines()[0],
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / GIB, 1),
        "shared_memory_gib": round(shutil.disk_usage("/dev/shm").total / GIB, 1),
        "problem": "" if cuda else cuda_problem(torch.__version__, torch.version.cuda, driver),
        "workers": workers,
        "cards": [],
    }
    if not cuda:
        return found
    found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    for n in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(n)
        peers = [m for m in range(torch.cuda.device_count()) if m != n]
        found["cards"].append(
            {
                "name": card.name,
                "memory_gib": round(card.total_memory / GIB, 1),
                "capability": f"{card.major}.{card.minor}",
                "reaches": [m for m in peers if torch.cuda.can_device_access_peer(n, m)],
                "faults": faults(n),
            }
        )
    return found


def all_reduce(workers: int, small: bool) -> dict[str, Any]:
    """Seconds of an all-reduce as large as the gradients of CAFT-B, and of one bucket of them."""
    sizes = {"gradients": 8 * MIB, "bucket": MIB}
    if not small:
        sizes = {"gradients": 676_900_000, "bucket": BUCKET_BYTES}
    return on_ranks(_all_reduce, workers, sizes)


def _all_reduce(device: torch.device, sizes: dict[str, int]) -> dict[str, Any]:
    workers, found = dist.get_world_size(), {}
    for name, size in sizes.items():
        tensor = torch.ones(size // 4, device=device)
        _reduced(tensor, WARM)
        seconds = timed(partial(_reduced, tensor, TIMES), device) / TIMES
        sent = 2 * (workers - 1) / workers * size
        found[name] = {"mb": size / 1e6, "ms": 1e3 * seconds, "gb_per_s": sent / seconds / 1e9}
    return found


def _reduced(tensor: torch.Tensor, times: int) -> None:
    for _ in range(times):
        dist.all_reduce(tensor)


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of `work`, what it left to the device included."""
    settle(device)
    started = time.perf_counter()
    work()
    settle(device)
    return time.perf_counter() - started


def settle(device: torch.device) -> None:
    """Wait for all that the device was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def on_ranks(work: Callable[..., Any], workers: int, *args: Any) -> Any:
    """What rank 0 of `workers` processes returns of `work(device, *args)`, as JSON carries it."""
    with tempfile.TemporaryDirectory(prefix="caft-ranks-") as folder:
        start = (workers, folder, work, args)
        torch.multiprocessing.spawn(_rank, start, nprocs=workers)
        return json.loads((Path(folder) / "result.json").read_text())


def _rank(
    rank: int, workers: int, folder: str, work: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(workers))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=workers,
    )
    result = work(device, *args)
    if rank == 0:
        (Path(folder) / "result.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()
