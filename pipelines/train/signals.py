"""Hears notices in a running worker group: save and leave, because a node goes away, the run is to
stop or there is room for more workers; or trace steps. Between driver, Ray or a file and the loop.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.train.v2.api.train_fn_utils import get_preemption_info

from caft.errors import StorageError
from pipelines import storage
from pipelines.train.late import Late, sent
from pipelines.train.signal_board import Notice

LOOK_EVERY_S = 1.0
LOOK_FOR_FILE_EVERY_S = 5.0
PROFILE_REQUEST = "profile"  # a file of this name in the output asks for a trace


class Notices:
    """Hears notices on a thread beside training, and lets all workers act on the same step.

    Attributes:
        profile_asked: since the last call of `agree`, a trace was asked for.
    """

    def __init__(self, board: Any, device: torch.device, output: str) -> None:
        self._board = board
        self._device = device
        self._request = storage.join(output, PROFILE_REQUEST)
        self._heard = Notice.NONE
        self._profile = False
        self._agreed: Late | None = None
        self.profile_asked = False
        self._reads_board = dist.get_rank() == 0
        self._stopped = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def agree(self) -> Notice:
        """The largest notice that a worker had heard one call ago; every worker calls it at every
        step. Read that late it never makes the host wait for the device."""
        before, profile = self._agreed, self._profile
        if profile:
            self._profile = False  # asked for once
        agreed = sent([int(self._heard), int(profile)], self._device)
        dist.all_reduce(agreed, dist.ReduceOp.MAX)
        self._agreed = Late(agreed)
        if before is None:
            return Notice.NONE
        notice, asked = before.read().tolist()
        self.profile_asked = bool(asked)
        return Notice(notice)

    def close(self) -> None:
        """Listen no longer: the process group and the board end with the run."""
        self._stopped.set()

    def _listen(self) -> None:
        looked = 0.0
        while not self._stopped.wait(LOOK_EVERY_S):
            # Answered for all workers together, so each asks equally often.
            if get_preemption_info() is not None:
                self._heard = max(self._heard, Notice.NODE_LEAVES)
            if self._reads_board:
                self._heard = max(self._heard, ray.get(self._board.read.remote()))
                if time.monotonic() - looked > LOOK_FOR_FILE_EVERY_S:
                    self._look_for_request()
                    looked = time.monotonic()

    def _look_for_request(self) -> None:
        with suppress(StorageError):  # the next look may reach it
            if storage.exists(self._request):
                storage.delete_file(self._request)
                self._profile = True
