"""What a study will take, before anything is spent: a table, a total, and what it cannot tell.
First step of the sweep stage; the same numbers are the axes of the laws fitted in the end."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from caft.errors import ConfigError
from caft.overrides import leaves
from pipelines.sweep.config import CostConfig, SweepConfig
from pipelines.sweep.points import Point, all_points, with_new_steps

FEWEST_COMPUTES = 5  # on the envelope of a family: below, a law with a floor cannot be told
FEWEST_DECADES = 1.5
FEWEST_SIZES = 3
NEARLY_EQUAL = 1.5  # times as much compute
HOUR_S, TERA = 3600.0, 1e12
MAY_DIFFER = (
    ".width",
    ".heads",
    "_heads",
    ".depth",
    "_depths",
    ".layers",
    "_layers",
    "stem_widths",
    "name",
)


@dataclass(frozen=True)
class PlannedPoint:
    """A row of the plan."""

    name: str
    family: str
    size: str
    parameters: int
    samples: int
    unique_samples: int | None  # None: the dataset is not there yet
    global_batch: int
    lr: float
    seed: int
    compute: float  # FLOP, as if it were trained alone
    device_hours: float  # of what it adds to the points before it

    @property
    def repeats(self) -> float | None:
        """How often a row is seen."""
        return self.samples / self.unique_samples if self.unique_samples else None


@dataclass(frozen=True)
class Plan:
    """All points, and what is to be said of them."""

    points: tuple[PlannedPoint, ...]
    guessed: tuple[str, ...]  # models whose speed is a guess
    warnings: tuple[str, ...]
    alone_hours: float  # without shared trunks
    price: float | None

    @property
    def device_hours(self) -> float:
        return sum(point.device_hours for point in self.points)


def make_plan(config: SweepConfig, pool_rows: int | None) -> Plan:
    """Plan a study on a dataset of `pool_rows` rows; None: not known yet.

    Raises:
        ConfigError: as `all_points`, a part larger than the dataset, or the budget exceeded.
    """
    for rows in config.rows:
        if rows and pool_rows and rows > pool_rows:
            raise ConfigError(f"rows: {rows:,} are more than the dataset's {pool_rows:,}")
    points = all_points(config)
    planned, alone, guessed = [], 0.0, dict[str, None]()
    for setting, group in itertools.groupby(points, key=lambda point: point.setting):
        own = list(group)
        model = f"{setting.family}.{setting.size}"
        rate = images_per_s(config.cost, model, setting.flop_per_sample)
        if model not in config.cost.images_per_s:
            guessed[model] = None
        for point, steps in with_new_steps(own):
            batch = setting.recipe.global_batch
            alone += point.samples / rate / HOUR_S
            planned.append(
                PlannedPoint(
                    point.name,
                    setting.family,
                    setting.size,
                    setting.parameters,
                    point.samples,
                    setting.rows or pool_rows,
                    batch,
                    setting.recipe.optimizer.lr,
                    setting.recipe.seed,
                    point.compute,
                    steps * batch / rate / HOUR_S,
                )
            )
    hours, price = sum(p.device_hours for p in planned), config.cost.price_per_device_hour
    budget = config.cost.budget_device_hours
    if budget is not None and hours > budget:
        raise ConfigError(
            f"cost.budget_device_hours: the study takes about {hours:,.1f} device-hours, the "
            f"budget is {budget:,.1f}; take fewer points, smaller models, or raise it"
        )
    return Plan(
        tuple(planned),
        tuple(guessed),
        tuple(_warnings(points)),
        alone,
        None if price is None else price * hours,
    )


def images_per_s(cost: CostConfig, model: str, flop_per_sample: float) -> float:
    """Of one device that trains `model`: measured, or guessed from its peak."""
    guess = cost.mfu * cost.peak_tflop_per_s * TERA / flop_per_sample
    return cost.images_per_s.get(model, guess)


def _warnings(points: Sequence[Point]) -> list[str]:
    """Why a law may not be identified by such points."""
    found = []
    families = dict.fromkeys(point.setting.family for point in points)
    for family in families:
        own = [point for point in points if point.setting.family == family]
        computes = sorted({point.compute for point in own})
        sizes = sorted({point.setting.parameters for point in own})
        decades = math.log10(computes[-1] / computes[0])
        if len(computes) < FEWEST_COMPUTES:
            found.append(
                f"{family}: {len(computes)} different computes; a law with a floor needs at least "
                f"{FEWEST_COMPUTES} points on the frontier"
            )
        if decades < FEWEST_DECADES:
            found.append(
                f"{family}: compute spans {decades:.1f} decades; below {FEWEST_DECADES} an "
                "exponent and a floor cannot be told apart"
            )
        if len(sizes) < FEWEST_SIZES:
            found.append(f"{family}: {len(sizes)} sizes; the exponent of size needs {FEWEST_SIZES}")
        elif not _crossed(own):
            found.append(
                f"{family}: one-sided: no compute is reached by more than one size, so the best "
                "size at a compute cannot be seen; let numbers of samples overlap"
            )
        found += [f"{family}: {problem}" for problem in _differences(own)]
    if len(dict.fromkeys(point.setting.recipe.global_batch for point in points)) > 1:
        found.append("batches differ: losses are of a batch, and are fitted for each batch alone")
    return found


def _crossed(points: Sequence[Point]) -> bool:
    """Whether two sizes reach nearly the same compute."""
    return any(
        one.setting.size != other.setting.size
        and max(one.compute, other.compute) < NEARLY_EQUAL * min(one.compute, other.compute)
        for one, other in itertools.combinations(points, 2)
    )


def _differences(points: Sequence[Point]) -> list[str]:
    """Keys in which sizes of a family differ that are not width or depth."""
    models = {point.setting.size: point.setting.model for point in points}
    flat = [dict(leaves(model.model_dump(mode="json"))) for model in models.values()]
    differing = [
        key
        for key in dict.fromkeys(itertools.chain(*flat))
        if len({str(one.get(key)) for one in flat}) > 1
        and not key.endswith(MAY_DIFFER)
        and not key.endswith("embed_dim")
    ]
    return [
        f"sizes come from different sources: they differ in model.{key}, not in width and depth "
        "alone"
        for key in differing
    ]


def plan_table(plan: Plan) -> str:
    """The plan as it is printed."""
    head = ("point", "parameters", "samples", "repeats", "FLOP", "device-hours")
    rows = [
        (
            point.name,
            f"{point.parameters:,}",
            f"{point.samples:,}",
            "?" if point.repeats is None else f"{point.repeats:,.2f}",
            f"{point.compute:.2e}",
            f"{point.device_hours:,.3g}",
        )
        for point in plan.points
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in (head, *rows)
    ]
    price = "" if plan.price is None else f", {plan.price:,.2f} at the price given"
    lines += [
        "",
        f"{len(plan.points)} points, {sum(p.compute for p in plan.points):.2e} FLOP; shared trunks "
        f"leave {plan.device_hours:,.3g} device-hours of {plan.alone_hours:,.3g}{price}",
    ]
    if plan.guessed:
        lines.append(
            f"hours are a guess for {', '.join(plan.guessed)}: nothing was measured; set "
            "cost.images_per_s"
        )
    lines += [f"warning: {warning}" for warning in plan.warnings]
    return "\n".join(lines)


def plan_csv(plan: Plan) -> str:
    return table_csv([asdict(point) for point in plan.points], _columns())


def table_csv(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _columns() -> list[str]:
    return [field.name for field in fields(PlannedPoint)]
