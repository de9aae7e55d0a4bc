"""The exponential moving average of a run's weights, kept beside them at any ZeRO stage.
Updated after steps; saved in checkpoints; the run's final model where it is on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from caft.model import CAFT
from pipelines.train.config import AverageConfig
from pipelines.train.host_copies import HostCopies
from pipelines.train.sharding import (
    gather_shares,
    is_cut,
    own_part,
    part_of,
    part_places,
    whole_tensors,
)


class WeightAverage:
    """average <- decay average + (1 - decay) weights, of the trained parameters.

    The n-th update has decay min(decay, (1 + n) / (10 + n)), so that the start is soon forgotten.
    The first worker keeps the average; under ZeRO-3 each keeps that of its parts.
    """

    def __init__(
        self, model: CAFT, config: AverageConfig, saved: Mapping[str, Tensor] | None = None
    ) -> None:
        """
        Args:
            saved: what `whole` gave in the run that goes on here; None: begin with the weights.
        """
        self._config = config
        trained: dict[str, Tensor] = {
            name: p for name, p in model.named_parameters() if p.requires_grad
        }
        self._cut = any(is_cut(parameter) for parameter in trained.values())
        self._parameters = trained if self._cut or dist.get_rank() == 0 else {}
        self._averages = [tensor.detach().clone() for tensor in self._weights()]
        if saved is not None:
            for average, (name, parameter) in zip(
                self._averages, self._parameters.items(), strict=True
            ):
                value = saved[name]
                average.copy_(own_part(parameter, value) if self._cut else value)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After step `step`, counted from 1; every worker calls it."""
        if step % self._config.every_steps or not self._averages:
            return
        n = step // self._config.every_steps
        decay = min(self._config.decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(self._averages, self._weights(), 1 - decay)

    def whole(self, copies: HostCopies) -> dict[str, Tensor]:
        """The average by parameter, on the host once `copies` are finished; empty on all workers
        but the first. Every worker calls it."""
        names = {parameter: name for name, parameter in self._parameters.items()}
        pairs: Iterable[tuple[Tensor, Tensor]]
        if self._cut:
            flat = torch.cat(self._averages)
            places = part_places(list(self._parameters.values()))
            pairs = whole_tensors(gather_shares(flat, flat.device), places)
        else:
            pairs = zip(self._parameters.values(), self._averages, strict=True)
        return {names[p]: copies.take(f"average.{names[p]}", value) for p, value in pairs}

    def _weights(self) -> list[Tensor]:
        parameters = self._parameters.values()
        return [part_of(p) if self._cut else p.data for p in parameters]
