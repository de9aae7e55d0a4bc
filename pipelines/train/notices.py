"""Notices to a running worker group: save and leave, because a node goes away, the run is to stop,
or there is room for more workers. Between the driver or Ray and the workers' loop."""

from __future__ import annotations

import threading
from enum import IntEnum
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.train.v2.api.train_fn_utils import get_preemption_info

LOOK_EVERY_S = 1.0


class Notice(IntEnum):
    """Why a worker group leaves before the last step; the larger one wins."""

    NONE = 0
    GROW = 1  # there is room for more workers
    NODE_LEAVES = 2  # Ray was told that a node with workers will be taken away
    STOP = 3  # somebody wants the run to end here


@ray.remote(num_cpus=0)
class NoticeBoard:
    """Where the driver leaves a notice for the workers."""

    def __init__(self) -> None:
        self._notice = Notice.NONE

    def post(self, notice: Notice) -> None:
        self._notice = max(self._notice, notice)

    def read(self) -> Notice:
        return self._notice


class Notices:
    """Hears notices on a thread beside training, and lets all workers act on the same step."""

    def __init__(self, board: Any, device: torch.device) -> None:
        self._board = board
        self._device = device
        self._heard = Notice.NONE
        self._agreed: torch.Tensor | None = None
        threading.Thread(target=self._listen, daemon=True).start()

    def agree(self) -> Notice:
        """The largest notice that a worker had heard one call ago; every worker calls it at every
        step. Read that late it never makes the host wait for the device."""
        before = self._agreed
        self._agreed = torch.tensor([float(self._heard)], device=self._device)
        dist.all_reduce(self._agreed, dist.ReduceOp.MAX)
        return Notice.NONE if before is None else Notice(int(before.item()))

    def _listen(self) -> None:
        stopped = threading.Event()
        while not stopped.wait(LOOK_EVERY_S):
            # Answered for all workers together, so each asks equally often.
            if get_preemption_info() is not None:
                self._heard = max(self._heard, Notice.NODE_LEAVES)
            if dist.get_rank() == 0:
                self._heard = max(self._heard, ray.get(self._board.read.remote()))
