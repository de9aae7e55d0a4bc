"""Whole weights and moments of a model that ZeRO has cut up, at any of its stages.
Between DeepSpeed and what a checkpoint holds; every worker calls these."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_local_fp32_param,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor

from caft.model import CAFT
from pipelines.train.config import AverageConfig

MOMENTS = ("exp_avg", "exp_avg_sq")


def whole_weights(model: CAFT, copies: HostCopies | None = None) -> dict[str, Tensor]:
    """The state of `model` on the host; empty on all workers but the first.

    Args:
        copies: buffers to use, and to `finish`; None: new ones, and the copies are complete.
    """
    weights = {}
    into = copies or HostCopies()
    for name, tensor in model.state_dict(keep_vars=True).items():
        with deepspeed.zero.GatheredParameters([tensor], enabled=is_cut(tensor)):
            if dist.get_rank() == 0:
                weights[name] = into.take(name, tensor)
    if copies is None:
        into.finish()
    return weights


def whole_moments(engine: Any, model: CAFT, copies: HostCopies | None = None) -> dict[str, Tensor]:
    """Adam's moments, `<parameter>.<moment>`, on the host; empty on all workers but the first. One
    collective for each moment of each part that ZeRO steps at once; `copies` as in `whole_weights`.
    """
    into = copies or HostCopies()
    _make_moments(engine)
    names = {parameter: name for name, parameter in _trained(model).items()}
    moments = {}
    for held, places in zip(_optimised_tensors(engine), _places(engine), strict=True):
        for moment in MOMENTS:
            value = _adam(engine).state[held][moment]
            if places:
                shares = gather_shares(value, engine.device)
            else:
                shares = [value] if dist.get_rank() == 0 else []
            for parameter, whole in whole_tensors(shares, places or {held: 0}):
                name = f"{names[parameter]}.{moment}"
                moments[name] = into.take(name, whole)
    if copies is None:
        into.finish()
    return moments


def set_moments(engine: Any, model: CAFT, moments: Mapping[str, Tensor], updates: int) -> None:
    """Give a fresh engine the moments of `whole_moments`, with `updates_made` in them."""
    adam = _adam(engine)
    _make_moments(engine)
    for held in _optimised_tensors(engine):
        adam.state[held]["step"].fill_(updates)
    _link_moments(engine)
    for name, parameter in _trained(model).items():
        for moment in MOMENTS:
            value = moments[f"{name}.{moment}"]
            if not engine.zero_optimization():
                adam.state[parameter][moment].copy_(value)
            elif is_cut(parameter):
                safe_set_local_optimizer_state(parameter, own_part(parameter, value), moment)
            else:
                safe_set_full_optimizer_state(parameter, value, moment)


def updates_made(engine: Any) -> int:
    """How many updates are in the moments: steps whose gradients were not finite are not."""
    _make_moments(engine)
    return int(_adam(engine).state[_optimised_tensors(engine)[0]]["step"].item())


def first_not_finite(model: CAFT) -> str | None:
    """Name of the first weight or running statistic that holds something else than numbers."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        with deepspeed.zero.GatheredParameters([tensor], enabled=is_cut(tensor)):
            if not tensor.detach().isfinite().all():
                return name
    return None


@torch.no_grad()
def clamp_scales_(model: CAFT) -> None:
    """`CAFT.clamp_scales_` on the weights and on the copy that ZeRO's optimiser steps from, which
    would drift out of range unseen."""
    model.clamp_scales_()
    for scale, most in model.log_scales().values():
        if is_cut(scale):
            part_of(scale).clamp_(0, most)
            safe_set_local_fp32_param(scale, safe_get_local_fp32_param(scale).clamp(0, most))
        else:
            safe_set_full_fp32_param(scale, scale)


def gather_shares(share: Tensor, device: torch.device | str) -> list[Tensor]:
    """Flat tensors of equal length of all workers, in rank order; empty on all but the first."""
    share = share.to(device)  # offloaded ones are on the host
    workers = dist.get_world_size()
    if workers == 1:
        return [share]
    shares = [torch.empty_like(share) for _ in range(workers)] if dist.get_rank() == 0 else None
    dist.gather(share, shares)
    return shares or []


def whole_tensors(
    shares: Sequence[Tensor], places: Mapping[Tensor, int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Parameters, each with what `shares` of `gather_shares` hold for it; none without shares.

    Args:
        places: where each parameter begins: in the shares end to end, or, of a parameter that
            is itself cut over the workers, in each of them.
    """
    if not shares:
        return
    if any(is_cut(parameter) for parameter in places):
        for parameter, start in places.items():
            size = part_of(parameter).numel()
            flat = torch.cat([share[start : start + size] for share in shares])
            shape: torch.Size = parameter.ds_shape  # type: ignore[attr-defined]
            yield parameter, flat[: shape.numel()].view(shape)
        return
    flat = torch.cat([share.flatten() for share in shares])
    for parameter, start in places.items():
        yield parameter, flat[start : start + parameter.numel()].view(parameter.shape)


def _places(engine: Any) -> list[dict[Tensor, int]]:
    """For each of `_optimised_tensors` the parameters it holds, and where; empty where it is a
    parameter itself."""
    optimizer = engine.optimizer
    if not engine.zero_optimization():
        return [{} for _ in _optimised_tensors(engine)]
    if engine.zero_optimization_stage() == 3:
        return [part_places(group) for group in optimizer.fp16_groups]
    groups = zip(
        optimizer.round_robin_bit16_groups, optimizer.round_robin_bit16_offsets, strict=True
    )
    return [dict(zip(parameters, offsets, strict=True)) for parameters, offsets in groups]


def part_places(parameters: Sequence[Tensor]) -> dict[Tensor, int]:
    """Where each of several cut parameters begins in this worker's parts of them end to end."""
    sizes = [part_of(parameter).numel() for parameter in parameters]
    starts = itertools.accumulate(sizes, initial=0)
    return dict(zip(parameters, starts, strict=False))


def _trained(model: CAFT) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def is_cut(tensor: Tensor) -> bool:
    """Whether ZeRO-3 has cut this parameter into parts."""
    return hasattr(tensor, "ds_tensor")


def part_of(parameter: Any) -> Tensor:
    """This worker's part of a parameter that is cut, flat and padded."""
    return parameter.ds_tensor


def own_part(parameter: Tensor, whole: Tensor) -> Tensor:
    """What of `whole` belongs in this worker's part of a parameter."""
    size = part_of(parameter).numel()
    padded = torch.zeros(size * dist.get_world_size(), dtype=whole.dtype)
    padded[: whole.numel()] = whole.flatten()
    return padded[size * dist.get_rank() :][:size]


def _optimised_tensors(engine: Any) -> list[Tensor]:
    """What the optimiser steps: parameters, or the flat parts of them that ZeRO keeps here."""
    optimizer = engine.optimizer
    if not engine.zero_optimization():
        return [p for group in optimizer.param_groups for p in group["params"]]
    if engine.zero_optimization_stage() == 3:
        return optimizer.fp32_partitioned_groups_flat
    return optimizer.single_partition_of_fp32_groups


def _adam(engine: Any) -> torch.optim.Optimizer:
    return engine.optimizer.optimizer if engine.zero_optimization() else engine.optimizer


def _make_moments(engine: Any) -> None:
    """Before the first update there are none."""
    state = _adam(engine).state
    for held in _optimised_tensors(engine):
        if not state[held]:
            state[held] = {
                "step": torch.zeros((), device=held.device),
                **{moment: torch.zeros_like(held) for moment in MOMENTS},
            }


def _link_moments(engine: Any) -> None:
    """Let DeepSpeed find every parameter's moments. ZeRO 1 and 2 link them once, after the step of
    the first parameter group, when the moments of the later groups do not exist yet."""
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


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
