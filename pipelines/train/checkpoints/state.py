"""What a training run saves and begins with: weights, optimiser moments and position, no pickles.
Whole tensors are stored, so a run may resume on other workers and at another ZeRO stage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from caft.checkpoint import TRAINING_STATE, save_tensors, save_weights, write_manifest
from caft.model import CAFT
from pipelines.run_layout import AVERAGE
from pipelines.train.deepspeed.loss_scale import loss_scale_state, restore_loss_scale
from pipelines.train.deepspeed.sharding import (
    HostCopies,
    WeightAverage,
    set_moments,
    updates_made,
    whole_moments,
    whole_weights,
)

OPTIMIZER, POSITION = "optimizer.safetensors", "position.json"


@dataclass(frozen=True)
class Snapshot:
    """A run after a step, in the first worker's host memory; without tensors on all others."""

    position: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    average: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def final(self) -> Mapping[str, Tensor]:
        """The weights of a model that ends here: averaged ones where there are any; buffers have
        no average."""
        return {**self.weights, **self.average}

    def write(self, folder: Path, model: CAFT, info: Mapping[str, Any]) -> None:
        """Fill a checkpoint folder, its manifest last; `info` goes into that."""
        save_weights(model, folder, self.weights)
        state = folder / TRAINING_STATE
        state.mkdir()
        save_tensors(self.moments, state / OPTIMIZER)
        if self.average:
            save_tensors(self.average, state / AVERAGE)
        (state / POSITION).write_text(json.dumps(self.position), encoding="utf-8")
        write_manifest(folder, dict(info))


def take_snapshot(
    engine: Any, model: CAFT, step: int, copies: HostCopies, average: WeightAverage | None = None
) -> Snapshot:
    """Copy the run's state after `step` to the first worker's host; every worker calls it.

    Args:
        copies: whose buffers the snapshot lives in: until the next one is taken with them.
    """
    position = {
        "step": step,
        "updates": updates_made(engine),
        "loss_scale": loss_scale_state(engine),
    }
    weights, moments = whole_weights(model, copies), whole_moments(engine, model, copies)
    averages = average.whole(copies) if average is not None else {}
    copies.finish()
    return Snapshot(position, weights, moments, averages)


def save_checkpoint(folder: Path, engine: Any, model: CAFT, step: int) -> None:
    """Write a checkpoint into the local `folder` and wait for it; every worker calls it."""
    snapshot = take_snapshot(engine, model, step, HostCopies())
    if dist.get_rank() == 0:
        snapshot.write(folder, model, {"step": step})
    dist.barrier()


def restore_state(folder: Path, engine: Any, model: CAFT) -> int:
    """Load the optimiser's moments into a fresh engine; returns the step to go on from.

    The weights must have been loaded before the engine was made.
    """
    state = folder / TRAINING_STATE
    position = json.loads((state / POSITION).read_text(encoding="utf-8"))
    set_moments(engine, model, load_file(state / OPTIMIZER), position["updates"])
    restore_loss_scale(engine, position["loss_scale"])
    return int(position["step"])


def saved_average(folder: Path) -> dict[str, Tensor] | None:
    """The averaged weights in a checkpoint; None without any."""
    file = folder / TRAINING_STATE / AVERAGE
    return load_file(file) if file.exists() else None
