"""AdamW for the runs that ZeRO does not cut up: clips, and makes no update that is not finite.
DeepSpeed's optimisers of stages 1 to 3 do both around the optimiser; at stage 0 it has to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm


class FiniteAdamW(torch.optim.AdamW):
    """AdamW that decides on the device whether to step, so that the host never waits for it.

    The fused kernels read `found_inf` where they would write: with it set, weights, moments and
    step counts stay as they are. The norm is that of gradients already summed over workers, so
    all of them decide alike.

    Args:
        max_norm: global norm to which gradients are clipped; None: they are not.
    """

    found_inf: Tensor  # 1.0 after an update that was not made, else 0.0

    def __init__(self, groups: list[dict], max_norm: float | None, **options: Any) -> None:
        super().__init__(groups, fused=True, **options)
        self._max_norm = max_norm
        self._global_grad_norm: Tensor | None = None  # where DeepSpeed's engine looks for it

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:  # type: ignore[override]
        """One update from the gradients at hand, unless one of them is not finite."""
        parameters = [
            p for group in self.param_groups for p in group["params"] if p.grad is not None
        ]
        norm = get_total_norm([p.grad for p in parameters])
        if self._max_norm is not None:
            clip_grads_with_norm_(parameters, self._max_norm, norm)
        self._global_grad_norm = norm
        self.found_inf = (~norm.isfinite()).float()
        super().step(closure)
