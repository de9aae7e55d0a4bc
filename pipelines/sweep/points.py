"""The points of a study: every combination of its axes, and the runs that reach them.
Pure arithmetic on the configuration; plan.py prices it and run.py starts it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from caft.config import ModelConfig, load_model_config
from caft.cost import Workload, describe, flops
from caft.errors import ConfigError
from pipelines.recipes import load_recipe
from pipelines.sweep.config import SweepConfig
from pipelines.train.config import TrainConfig


@dataclass(frozen=True)
class Setting:
    """All that decides a training run but its length: points of one setting share a trunk."""

    family: str
    size: str
    model: ModelConfig
    recipe: TrainConfig  # with this batch, learning rate and seed
    rows: int | None

    @property
    def competes(self) -> tuple[str, ...]:
        """What settings have in common that differ in their learning rate alone."""
        return tuple(part for part in self._parts if not part.startswith("lr"))

    @property
    def name(self) -> str:
        return "-".join(self._parts)

    @property
    def _parts(self) -> tuple[str, ...]:
        rows = "all" if self.rows is None else f"{self.rows}"
        batch, lr, seed = self.recipe.global_batch, self.recipe.optimizer.lr, self.recipe.seed
        return self.family, self.size, f"d{rows}", f"b{batch}", f"lr{lr:g}", f"s{seed}"

    @cached_property
    def parameters(self) -> int:
        """Trained ones."""
        return sum(row.parameters for row in describe(self.model) if not row.frozen)

    @cached_property
    def flop_per_sample(self) -> float:
        """Of training, forward and backward, on texts of the usual length."""
        chunks = self.model.text.chunks
        extra = self.recipe.ingest.extra_parts if self.model.losses.parts else 0
        work = Workload(
            parts=chunks + extra,
            global_batch=self.recipe.global_batch,
            block_size=self.recipe.block_size,
        )
        return flops(self.model, work).training


@dataclass(frozen=True)
class Point:
    """One setting trained for so many samples, with a cool-down at the end."""

    setting: Setting
    steps: int
    cooldown_steps: int

    @property
    def name(self) -> str:
        return f"{self.setting.name}-n{self.samples}"

    @property
    def samples(self) -> int:
        return self.steps * self.setting.recipe.global_batch

    @property
    def compute(self) -> float:
        """Training FLOP, as if it had no trunk to share."""
        return self.samples * self.setting.flop_per_sample

    @property
    def branches_at(self) -> int:
        """The trunk's step that the cool-down goes on from."""
        return self.steps - self.cooldown_steps


def all_points(config: SweepConfig) -> list[Point]:
    """Every point, settings one after the other, each from few to many samples.

    Raises:
        ConfigError: a recipe that is not one, or a number of samples too small for a step, or for
            the recipe's warm-up before the cool-down.
    """
    return [point for setting in all_settings(config) for point in points_of(setting, config)]


def recipe_of(config: SweepConfig, *axes: str) -> TrainConfig:
    """The recipe that points share, with `axes` (key=value) of one of them."""
    overrides = [*config.train_set, f"output={config.output}", *axes]
    return load_recipe(TrainConfig, config.train, overrides)


def all_settings(config: SweepConfig) -> list[Setting]:
    recipe = recipe_of(config)
    batches = config.global_batch or (recipe.global_batch,)
    rates = config.lr or (recipe.optimizer.lr,)
    settings = []
    for family, models in config.families.items():
        for size, choice in models.items():
            model = load_model_config(choice)
            for rows, batch, lr, seed in itertools.product(
                config.rows, batches, rates, config.seeds
            ):
                axes = [f"global_batch={batch}", f"optimizer.lr={lr!r}", f"seed={seed}"]
                own = recipe_of(config, *axes)
                settings.append(Setting(family, size, model, own, rows))
    return settings


def points_of(setting: Setting, config: SweepConfig) -> list[Point]:
    warmup, batch = setting.recipe.optimizer.warmup_steps, setting.recipe.global_batch
    points = []
    for samples in sorted(config.samples_seen):
        steps = round(samples / batch)
        cooldown = max(1, round(config.cooldown_fraction * steps))
        if steps - cooldown <= warmup:
            raise ConfigError(
                f"samples_seen: {samples:,} are {steps:,} steps of {batch}, too few for "
                f"optimizer.warmup_steps {warmup:,} before a cool-down of {cooldown:,}; raise "
                "them or lower warmup_steps in train_set"
            )
        points.append(Point(setting, steps, cooldown))
    return points


def with_new_steps(points: Sequence[Point]) -> list[tuple[Point, int]]:
    """Points of one setting, from few to many samples, each with the steps that it adds: its
    cool-down, and what of the trunk it needs beyond the point before."""
    before = [0, *(point.branches_at for point in points)]
    return [
        (point, point.branches_at - start + point.cooldown_steps)
        for point, start in zip(points, before, strict=False)
    ]
