"""Values that the host reads a step after the device was asked for them, without waiting for it.
Between a training step and what watches steps: the guard and the signals."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Late:
    """A copy of `values` on its way to the host. Reading it waits for the work that was queued
    before the copy, not for what was queued since."""

    def __init__(self, values: Tensor) -> None:
        self._values, self._there = values, None
        if values.device.type == "cuda":
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._there = torch.cuda.Event()
            self._there.record()

    def read(self) -> Tensor:
        """The values, on the host."""
        if self._there is not None:
            self._there.synchronize()
        return self._values


def sent(values: Sequence[int], device: torch.device) -> Tensor:
    """(n,) int64 on `device`, without waiting for it."""
    host = torch.tensor(values, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)
