"""What the points of a study came to: one row for each that is done, as laws are fitted to.
Between the stages' own results and runs.csv, MLflow and fit.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from caft.config import Config
from caft.errors import ConfigError, DataError
from pipelines import storage
from pipelines.sweep.config import SweepConfig
from pipelines.sweep.points import Point
from pipelines.sweep.tasks import EVALUATE_RESULT, TRAIN_RESULT


class PointConfig(Config):
    """A point as its MLflow run shows it."""

    family: str
    size: str
    parameters: int
    samples: int
    unique_samples: int
    repeats: float
    global_batch: int
    lr: float
    seed: int
    compute: float = Field(description="training FLOP")

    @classmethod
    def of(cls, point: Point, pool_rows: int) -> PointConfig:
        setting = point.setting
        unique = setting.rows or pool_rows
        return cls(
            family=setting.family,
            size=setting.size,
            parameters=setting.parameters,
            samples=point.samples,
            unique_samples=unique,
            repeats=point.samples / unique,
            global_batch=setting.recipe.global_batch,
            lr=setting.recipe.optimizer.lr,
            seed=setting.recipe.seed,
            compute=point.compute,
        )


def errors_of(point: Point, config: SweepConfig) -> dict[str, float]:
    """Each of the study's targets, and all losses, of a point whose tasks are done.

    Raises:
        ConfigError: the evaluate stage has no such benchmark or metric.
    """
    losses = storage.read_json(storage.join(config.output, "train", point.name, TRAIN_RESULT))
    path = storage.join(config.output, "evaluate", point.name, EVALUATE_RESULT)
    benchmarks = storage.read_json(path)["benchmarks"]
    errors = dict(losses["metrics"])
    for target in config.targets:
        if target.startswith("1-"):
            benchmark, _, metric = target.removeprefix("1-").partition("/")
            value = benchmarks.get(benchmark, {}).get(metric)
            if not isinstance(value, float):
                known = sorted(
                    f"{name}/{key}"
                    for name, found in benchmarks.items()
                    for key, number in found.items()
                    if isinstance(number, float)
                )
                raise ConfigError(
                    f"targets: {path} has no '{benchmark}/{metric}'; it has {', '.join(known)}"
                )
            errors[target] = 1.0 - value
        elif target not in errors:
            raise ConfigError(f"targets: no '{target}' in training; there are {', '.join(errors)}")
    return errors


def collect(points: Sequence[Point], config: SweepConfig, pool_rows: int) -> list[dict[str, Any]]:
    """A row for each point that is done, by its axes and errors.

    Raises:
        DataError: none is.
        ConfigError: as `errors_of`.
    """
    rows = []
    for point in points:
        if storage.exists(storage.join(config.output, "evaluate", point.name, EVALUATE_RESULT)):
            axes = PointConfig.of(point, pool_rows).model_dump()
            names = {"point": point.name, "trunk": point.setting.name}
            rows.append({**names, **axes, **errors_of(point, config)})
    if not rows:
        raise DataError(f"{config.output}: no point of this study is done; run it first")
    return rows
