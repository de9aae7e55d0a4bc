"""The learning rate at each step, and which parameters are decayed.
Pure functions of the configuration: nothing to save or restore."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from caft.errors import ConfigError
from pipelines.train.config import OptimizerConfig


def learning_rate(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """The rate of update number `step`, counted from 0: linear warm-up to `lr`, then the schedule.

    - `cosine` falls to `min_lr` at `total_steps` (Loshchilov and Hutter, 2017);
    - `constant` stays, and does not depend on `total_steps`;
    - `constant_cooldown` is `constant` until the cool-down, which ends in `min_lr` at
      `total_steps`: a straight line, or 1 - sqrt of the share that is done (Haegele et al., 2024).
      A trunk trained at a constant rate therefore serves every length: taken up from any step
      before its cool-down, it goes on as if it had had this schedule from the start.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "cosine":
        progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
        share = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    elif config.schedule == "constant":
        share = 1.0
    else:
        length = cooldown_steps(total_steps, config)
        progress = min(1.0, max(0.0, (step - (total_steps - length)) / length))
        share = 1 - (progress if config.cooldown_shape == "linear" else math.sqrt(progress))
    return config.min_lr + (config.lr - config.min_lr) * share


def cooldown_steps(total_steps: int, config: OptimizerConfig) -> int:
    """Length of the cool-down of `constant_cooldown` in a run of `total_steps`.

    Raises:
        ConfigError: the run has no room for it after the warm-up.
    """
    steps = config.cooldown_steps or max(1, round(config.cooldown_fraction * total_steps))
    if steps + config.warmup_steps > total_steps:
        raise ConfigError(
            f"optimizer: warm-up of {config.warmup_steps:,} steps and cool-down of {steps:,} do "
            f"not fit into {total_steps:,} steps; lower warmup_steps, cooldown_steps or "
            "cooldown_fraction, or raise epochs"
        )
    return steps


def check_schedule(total_steps: int, config: OptimizerConfig) -> None:
    """Raises ConfigError where a run of `total_steps` ends before its warm-up or cool-down does."""
    if config.warmup_steps > total_steps:
        raise ConfigError(
            f"optimizer.warmup_steps: the warm-up of {config.warmup_steps:,} steps is longer than "
            f"the run of {total_steps:,}; lower it or raise epochs"
        )
    if config.schedule == "constant_cooldown":
        cooldown_steps(total_steps, config)


def parameter_groups(
    model: nn.Module, weight_decay: float, lr_scales: Mapping[str, float] | None = None
) -> list[dict]:
    """The trained parameters of `model` for an optimiser. Matrices are decayed; biases, norms,
    scales and other 1-D parameters are not.

    Args:
        lr_scales: by parameter, what each group's learning rate is to be multiplied with, which
            stands in the groups as `lr_scale`; None: 1 for all.
    """
    groups: dict[tuple[float, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = lr_scales[name] if lr_scales is not None else 1.0
        is_plain = parameter.ndim < 2
        decay = 0.0 if is_plain else weight_decay
        group = {"params": [], "weight_decay": decay, "lr_scale": scale}
        groups.setdefault((scale, is_plain), group)["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]
