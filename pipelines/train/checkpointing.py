"""Saving and restoring a training run: weights, optimiser moments and position, without pickles.
Whole tensors are stored, so a run may resume on other workers and at another ZeRO stage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
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
from pipelines.train.loss_scale import loss_scale_state, restore_loss_scale
from pipelines.train.sharding import set_moments, updates_made, whole_moments, whole_weights

OPTIMIZER, POSITION = "optimizer.safetensors", "position.json"


def save_checkpoint(
    folder: Path, engine: Any, model: CAFT, step: int, info: dict[str, Any], keep: int
) -> None:
    """Write checkpoint `folder`/step-NNNNNNNN; every worker calls it, the first one writes.

    Raises:
        StorageError: the disk is full or not writable.
    """
    weights, moments = whole_weights(model), whole_moments(engine, model)
    if dist.get_rank() == 0:
        target = folder / f"step-{step:08d}"
        shutil.rmtree(target, ignore_errors=True)  # a half-written one from before a crash
        save_weights(model, target, weights)
        state = target / TRAINING_STATE
        state.mkdir()
        save_file(moments, state / OPTIMIZER)
        position = {
            "step": step,
            "updates": updates_made(engine),
            "loss_scale": loss_scale_state(engine),
        }
        (state / POSITION).write_text(json.dumps(position), encoding="utf-8")
        write_manifest(target, {"step": step, **info})
        for old in _steps(folder)[:-keep]:
            shutil.rmtree(old)
    dist.barrier()


def restore_moments(folder: Path, engine: Any, model: CAFT) -> int:
    """Load the optimiser's moments into a fresh engine; returns the step to go on from.

    The weights must have been loaded before the engine was made.
    """
    state = folder / TRAINING_STATE
    position = json.loads((state / POSITION).read_text(encoding="utf-8"))
    set_moments(engine, model, load_file(state / OPTIMIZER), position["updates"])
    restore_loss_scale(engine, position["loss_scale"])
    return int(position["step"])


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
