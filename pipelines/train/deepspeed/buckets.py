"""Gradients summed over workers in buckets, while backward still computes the rest of them.
In place of DeepSpeed's own sum at ZeRO stage 0, which begins after backward and copies twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET_BYTES = 32 * 2**20  # as large as a ring of GPUs needs to be at its full rate


class _Bucket:
    """Parameters whose gradients lie end to end in one tensor."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = parameters
        sizes = [parameter.numel() for parameter in parameters]
        self.flat = parameters[0].new_zeros(sum(sizes))
        self.views = [
            flat.view_as(parameter)
            for flat, parameter in zip(self.flat.split(sizes), parameters, strict=True)
        ]
        self.arrived = 0
        self.work: dist.Work | None = None

    @torch.no_grad()
    def send(self) -> None:
        """Lay the gradients into the bucket, where they stay, and begin to sum it up."""
        own = [
            torch.zeros_like(view) if p.grad is None else p.grad  # None: nothing depends on it
            for view, p in zip(self.views, self.parameters, strict=True)
        ]
        torch._foreach_copy_(self.views, own)
        for view, parameter in zip(self.views, self.parameters, strict=True):
            parameter.grad = view
        self.work = dist.all_reduce(self.flat, async_op=True)

    def finish(self) -> None:
        assert self.work is not None
        self.work.wait()
        self.work, self.arrived = None, 0


class GradientBuckets:
    """Sums the gradients of all workers. Each bucket travels as soon as its last gradient is there
    and those ahead of it have left: the same order on every worker."""

    def __init__(self, parameters: Sequence[Tensor], bucket_bytes: int = BUCKET_BYTES) -> None:
        """
        Args:
            parameters: in the order of forward; backward comes to the last ones first.
        """
        self._buckets: list[_Bucket] = []
        waiting: list[Tensor] = []
        for parameter in reversed(parameters):
            waiting.append(parameter)
            if sum(p.numel() * p.element_size() for p in waiting) >= bucket_bytes:
                self._buckets.append(_Bucket(waiting))
                waiting = []
        if waiting:
            self._buckets.append(_Bucket(waiting))
        self._sent = 0
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(self._hook(bucket))

    def finish(self) -> None:
        """After backward: `grad` of every parameter is the sum over workers."""
        for bucket in self._buckets[self._sent :]:
            bucket.send()
        for bucket in self._buckets:
            bucket.finish()
        self._sent = 0

    def _hook(self, bucket: _Bucket) -> Callable[[Tensor], None]:
        def arrived(_: Tensor) -> None:
            bucket.arrived += 1
            while self._sent < len(self._buckets):
                due = self._buckets[self._sent]
                if due.arrived < len(due.parameters):
                    return
                due.send()
                self._sent += 1

        return arrived
