"""Copies of tensors in host memory, whose buffers serve one checkpoint after the other.
Between a training step, which waits for the copy alone, and whoever writes it to a disk."""

from __future__ import annotations

import torch
from torch import Tensor


class HostCopies:
    """Buffers by name. A copy is complete after `finish`, and is overwritten by the next of its
    name."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, tensor: Tensor) -> Tensor:
        """The host's copy of `tensor`; from a GPU it is under way until `finish`."""
        buffer = self._buffers.get(name)
        if buffer is None:  # pinned memory is slow to get, so it is kept
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[name] = buffer
        return buffer.copy_(tensor.detach(), non_blocking=tensor.is_cuda)

    def finish(self) -> None:
        """Wait for the copies under way."""
        if any(buffer.is_pinned() for buffer in self._buffers.values()):
            torch.cuda.synchronize()
