"""Whole weights and moments of a model that ZeRO has cut up, at any of its stages.
Between DeepSpeed and what a checkpoint holds; every worker calls these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_optimizer_state,
    safe_get_local_fp32_param,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor

from caft.model import CAFT

MOMENTS = ("exp_avg", "exp_avg_sq")


def whole_weights(model: CAFT) -> dict[str, Tensor]:
    """The state of `model` on the host; empty on all workers but the first."""
    weights = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        with deepspeed.zero.GatheredParameters([tensor], enabled=_is_cut(tensor)):
            if dist.get_rank() == 0:
                weights[name] = tensor.detach().cpu().clone()
    return weights


def whole_moments(engine: Any, model: CAFT) -> dict[str, Tensor]:
    """Adam's moments, `<parameter>.<moment>`, on the host; empty on all but the first worker."""
    _make_moments(engine)
    _link_moments(engine)
    moments = {}
    for name, parameter in _trained(model).items():
        for moment in MOMENTS:
            if engine.zero_optimization():
                whole = safe_get_full_optimizer_state(parameter, moment)
            else:
                whole = engine.optimizer.state[parameter][moment]
            if dist.get_rank() == 0:
                moments[f"{name}.{moment}"] = whole.detach().cpu().clone()
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
            elif _is_cut(parameter):
                safe_set_local_optimizer_state(parameter, _own_part(parameter, value), moment)
            else:
                safe_set_full_optimizer_state(parameter, value, moment)


def updates_made(engine: Any) -> int:
    """How many updates are in the moments: steps whose gradients were not finite are not."""
    _make_moments(engine)
    return int(_adam(engine).state[_optimised_tensors(engine)[0]]["step"].item())


def first_not_finite(model: CAFT) -> str | None:
    """Name of the first weight or running statistic that holds something else than numbers."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        with deepspeed.zero.GatheredParameters([tensor], enabled=_is_cut(tensor)):
            if not tensor.detach().isfinite().all():
                return name
    return None


@torch.no_grad()
def clamp_scales_(model: CAFT) -> None:
    """`CAFT.clamp_scales_` on the weights and on the copy that ZeRO's optimiser steps from, which
    would drift out of range unseen."""
    model.clamp_scales_()
    for scale, most in model.log_scales().values():
        if _is_cut(scale):
            _part(scale).clamp_(0, most)
            safe_set_local_fp32_param(scale, safe_get_local_fp32_param(scale).clamp(0, most))
        else:
            safe_set_full_fp32_param(scale, scale)


def _trained(model: CAFT) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _is_cut(tensor: Tensor) -> bool:
    """Whether ZeRO-3 has cut this parameter into parts."""
    return hasattr(tensor, "ds_tensor")


def _part(parameter: Any) -> Tensor:
    """This worker's part of a parameter that is cut, flat and padded."""
    return parameter.ds_tensor


def _own_part(parameter: Tensor, whole: Tensor) -> Tensor:
    """What of `whole` belongs in this worker's part of a parameter."""
    size = _part(parameter).numel()
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
