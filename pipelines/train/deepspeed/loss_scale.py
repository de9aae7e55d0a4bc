"""The factor on a float16 loss that keeps small gradients from vanishing and large ones finite.
Between DeepSpeed's optimisers, which undo and adapt it, and training steps and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# DeepSpeed's names and values of the section fp16.
DEFAULTS = {
    "initial_scale_power": 16,
    "loss_scale_window": 1000,
    "hysteresis": 2,
    "consecutive_hysteresis": False,
    "min_loss_scale": 1,
}
STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def start_loss_scaling(engine: Any, section: Mapping[str, Any]) -> None:
    """Give a ZeRO optimiser over float32 weights DeepSpeed's dynamic loss scaler.

    Under autocast DeepSpeed itself would take torch's GradScaler, and call it after the norm and
    for each group of parameters: gradients would be clipped by their scaled norm, and the scale
    would move several times a step.

    Args:
        section: what of DeepSpeed's section `fp16` differs from `DEFAULTS`.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    options = DEFAULTS | dict(section)
    optimizer = engine.optimizer
    optimizer.torch_autocast_gradscaler = None
    optimizer.dynamic_loss_scale = True
    optimizer.loss_scaler = DynamicLossScaler(
        init_scale=2.0 ** options["initial_scale_power"],
        scale_window=options["loss_scale_window"],
        min_scale=options["min_loss_scale"],
        delayed_shift=options["hysteresis"],
        consecutive_hysteresis=options["consecutive_hysteresis"],
        raise_error_at_min_scale=False,  # guard.py says why no scale is small enough
    )


def fix_loss_scale(engine: Any) -> None:
    """Make the current scale that of this step's backward pass and update. DeepSpeed adapts the
    scale before it undoes it: a step that raised it would divide by twice what was multiplied."""
    if _scales(engine):
        engine.optimizer.override_loss_scale(engine.optimizer.loss_scaler.cur_scale)


def loss_scale(engine: Any) -> float | None:
    """The scale of the next backward pass; None where the loss is not scaled."""
    return float(engine.optimizer.loss_scaler.cur_scale) if _scales(engine) else None


def fixed_loss_scale(engine: Any) -> float | None:
    """The scale of the last backward pass; None where the loss is not scaled."""
    return float(engine.optimizer.external_loss_scale) if _scales(engine) else None


def can_fall(engine: Any, scale: float) -> bool:
    """Whether overflow at `scale` makes the next one smaller."""
    return bool(scale > engine.optimizer.loss_scaler.min_scale)


def loss_scale_state(engine: Any) -> dict[str, float] | None:
    """What a checkpoint keeps of it; None where the loss is not scaled."""
    if not _scales(engine):
        return None
    return {name: getattr(engine.optimizer.loss_scaler, name) for name in STATE}


def restore_loss_scale(engine: Any, state: Mapping[str, float] | None) -> None:
    """Go on from `loss_scale_state`; of a run that did not scale there is nothing to go on from."""
    if _scales(engine) and state is not None:
        for name in STATE:
            setattr(engine.optimizer.loss_scaler, name, state[name])


def _scales(engine: Any) -> bool:
    return bool(engine.zero_optimization() and engine.optimizer.dynamic_loss_scale)
