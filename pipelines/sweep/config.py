"""Typed configuration of the sweep stage: what varies, what points share, what it may cost."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from caft.config import Config, ModelChoice, Seed
from caft.scaling_law.forms import CHOSEN_FROM
from pipelines.config import StageConfig

Positive = Annotated[int, Field(gt=0)]
Name = Annotated[str, Field(pattern=r"^[\w.-]+$")]


class CostConfig(Config):
    """What the plan's hours and prices rest on."""

    images_per_s: dict[Name, float] = Field(
        {}, description="measured in training on one device, by FAMILY.SIZE"
    )
    peak_tflop_per_s: float = Field(989.0, gt=0, description="of a device, where nothing measured")
    mfu: float = Field(0.3, gt=0, le=1, description="guessed share of that peak")
    price_per_device_hour: float | None = Field(None, ge=0, description="in your currency")
    budget_device_hours: float | None = Field(None, gt=0, description="None: no limit")


class FitConfig(Config):
    """How laws are fitted to the points that are done."""

    bins: int | None = Field(
        None,
        ge=0,
        description="null: laws in compute are fitted to the front of all points; else equal "
        "intervals of log compute, whose best points are fitted; 0: all points",
    )
    test_size: int | None = Field(
        None, gt=0, description="images or queries behind a score: what chance adds to it"
    )
    chance: float | None = Field(
        None, ge=0, lt=1, description="score of guessing; null: 0, or k / test_size of a recall"
    )
    forms: tuple[str, ...] = Field(CHOSEN_FROM, min_length=1, description="to choose from")
    replicates: int = Field(500, gt=0, description="repetitions behind each 95% interval")
    budgets: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (), description="training FLOP to predict and advise at; empty: 10 times the largest point"
    )


class SweepConfig(StageConfig):
    """A scaling study: every model at every number of samples seen, on the train and evaluate
    stages."""

    output: str
    train: str = Field(description="recipe of the train stage that all points share")
    train_set: tuple[str, ...] = Field((), description="key=value, over that recipe")
    evaluate: str = Field(description="recipe of the evaluate stage that all points share")
    evaluate_set: tuple[str, ...] = Field((), description="key=value, over that recipe")
    families: dict[Name, dict[Name, ModelChoice]] = Field(
        min_length=1, description="models of each family, from small to large, by a size's name"
    )
    samples_seen: tuple[Positive, ...] = Field(min_length=1)
    rows: tuple[Positive | None, ...] = Field(
        (None,), min_length=1, description="nested random parts of the dataset; null: all of it"
    )
    global_batch: tuple[Positive, ...] = Field((), description="empty: the recipe's")
    lr: tuple[Annotated[float, Field(gt=0)], ...] = Field((), description="empty: the recipe's")
    lr_kept: int = Field(
        1, gt=0, description="rates of a model that go on after the fewest samples_seen"
    )
    seeds: tuple[Seed, ...] = Field((0,), min_length=1)
    cooldown_fraction: float = Field(
        0.2, gt=0, lt=1, description="of a point's steps; before it all points share a trunk"
    )
    targets: tuple[str, ...] = Field(
        min_length=1,
        description="errors that laws are fitted to; the first one chooses the learning rate: "
        "loss/total, or 1-BENCHMARK/METRIC",
    )
    concurrency: int | None = Field(
        None, gt=0, description="jobs at a time; None: as many as the cluster holds"
    )
    tries: int = Field(2, gt=0, description="of a job, before its point is marked as failed")
    cost: CostConfig = CostConfig()
    fit: FitConfig = FitConfig()

    @field_validator("samples_seen", "rows", "global_batch", "lr", "seeds", "targets")
    @classmethod
    def _each_once(cls, values: tuple) -> tuple:
        for value in values:
            if values.count(value) > 1:
                raise ValueError(f"{value} is there twice")
        return values

    @field_validator("targets")
    @classmethod
    def _errors(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        for target in targets:
            benchmark, _, metric = target.removeprefix("1-").partition("/")
            if not (benchmark and metric) or target.startswith("1-") == (benchmark == "loss"):
                raise ValueError(f"'{target}': write loss/TERM or 1-BENCHMARK/METRIC")
        return targets

    @model_validator(mode="after")
    def _known_sizes(self) -> SweepConfig:
        for name in self.cost.images_per_s:
            family, _, size = name.partition(".")
            if size not in self.families.get(family, {}):
                raise ValueError(f"cost.images_per_s: no model is called '{name}'")
        return self
