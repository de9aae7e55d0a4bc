"""Saving and restoring a training run: weights, optimiser moments and position, without pickles.
Moments are gathered per parameter, so a run may resume on another number of workers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_optimizer_state, safe_set_full_optimizer_state
from safetensors.torch import load_file, save_file

from caft.checkpoint import (
    CONFIG,
    TRAINING_STATE,
    read_manifest,
    save_weights,
    write_manifest,
)
from caft.config import ModelConfig, load_config
from caft.errors import CheckpointError
from caft.model import CAFT

MOMENTS = ("exp_avg", "exp_avg_sq")
OPTIMIZER, POSITION = "optimizer.safetensors", "position.json"


def save_checkpoint(
    folder: Path, engine: Any, model: CAFT, step: int, info: dict[str, Any], keep: int
) -> None:
    """Write checkpoint `folder`/step-NNNNNNNN; every worker calls it, the first one writes.

    Raises:
        StorageError: the disk is full or not writable.
    """
    moments = _gather_moments(engine, model)
    if dist.get_rank() == 0:
        target = folder / f"step-{step:08d}"
        shutil.rmtree(target, ignore_errors=True)  # a half-written one from before a crash
        save_weights(model, target)
        state = target / TRAINING_STATE
        state.mkdir()
        save_file(moments, state / OPTIMIZER)
        (state / POSITION).write_text(json.dumps({"step": step}), encoding="utf-8")
        write_manifest(target, {"step": step, **info})
        for old in _steps(folder)[:-keep]:
            shutil.rmtree(old)
    dist.barrier()


def restore_moments(folder: Path, engine: Any, model: CAFT) -> int:
    """Load the optimiser's moments into a fresh ZeRO engine; returns the step to go on from.

    The weights must have been loaded before the engine was made.
    """
    state = folder / TRAINING_STATE
    step = int(json.loads((state / POSITION).read_text(encoding="utf-8"))["step"])
    adam = engine.optimizer.optimizer
    for group in adam.param_groups:
        for partition in group["params"]:  # ZeRO makes these at its first step: here it is not
            adam.state[partition] = {
                "step": torch.tensor(float(step)),
                **{moment: torch.zeros_like(partition) for moment in MOMENTS},
            }
    _link_moments(engine)
    moments = load_file(state / OPTIMIZER)
    for name, parameter in model.named_parameters():
        for moment in MOMENTS:
            safe_set_full_optimizer_state(parameter, moments[f"{name}.{moment}"], moment)
    return step


def newest_checkpoint(folder: Path, model: ModelConfig) -> Path | None:
    """The newest whole checkpoint in `folder`; a damaged newer one is passed over with a line.

    Raises:
        CheckpointError: the checkpoint was made with another model configuration.
    """
    for candidate in reversed(_steps(folder)):
        try:
            read_manifest(candidate, verify=True)
        except CheckpointError as error:
            print(f"train: passing over {candidate.name}: {error}", flush=True)
            continue
        _require_same_model(load_config(ModelConfig, candidate / CONFIG), model, candidate)
        return candidate
    return None


def _require_same_model(theirs: ModelConfig, ours: ModelConfig, folder: Path) -> None:
    different = _first_difference(theirs.model_dump(), ours.model_dump())
    if different is not None:
        key, then, now = different
        raise CheckpointError(
            f"{folder / CONFIG}: made with model.{key}={then!r}, this run has {now!r}; "
            "restore that value or choose another output"
        )


def _first_difference(
    theirs: dict[str, Any], ours: dict[str, Any], prefix: str = ""
) -> tuple[str, Any, Any] | None:
    for key, then in theirs.items():
        now = ours[key]
        if isinstance(then, dict):
            if found := _first_difference(then, now, f"{prefix}{key}."):
                return found
        elif then != now:
            return f"{prefix}{key}", then, now
    return None


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _gather_moments(engine: Any, model: CAFT) -> dict[str, torch.Tensor]:
    """Every parameter's Adam moments at full shape; all workers take part in the gathering."""
    _link_moments(engine)
    moments = {}
    for name, parameter in model.named_parameters():
        for moment in MOMENTS:
            full = safe_get_full_optimizer_state(parameter, moment)
            moments[f"{name}.{moment}"] = full.reshape(parameter.shape).cpu().contiguous()
    return moments


def _link_moments(engine: Any) -> None:
    """Let DeepSpeed find every parameter's moments. It links them once, after the step of the
    first parameter group, when the moments of the later groups do not exist yet."""
    engine.optimizer._hp_optimizer_states_linked = False
    engine.optimizer._lazy_init_hp_params_optimizer_state()
