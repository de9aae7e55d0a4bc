"""The figures of a study: runs, laws with their intervals, predictions, residuals.
Between the study and its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from caft.scaling_law.fit import Band, Fit
from caft.scaling_law.study import IN_COMPUTE, IN_SIZE, FamilyStudy, Study
from caft.scaling_law.svg import Panel, colour, new_figure, number, render, text

Array = NDArray[np.float64]

WIDTH, LEFT, RIGHT = 760.0, 56.0, 16.0
TOP, MAIN, GAP, RESIDUALS, BOTTOM = 34.0, 300.0, 34.0, 90.0, 44.0
HEIGHT = TOP + MAIN + GAP + RESIDUALS + BOTTOM
LEGEND_LINE, LETTER = 18.0, 7.5
MARGIN = 1.08  # of the ranges, as a factor
CURVE_POINTS = 80


@dataclass(frozen=True)
class Series:
    """A curve and its points; series of one label have one colour."""

    label: str
    x: Array  # (n,) of the points fitted
    error: Array  # (n,)
    residuals: Array  # (n,)
    curve_x: Array  # (m,)
    curve: Band  # (m,)
    others: tuple[Array, Array] | None = None  # x and error of runs that were not fitted
    predicted: tuple[Array, Band] | None = None  # x and what is expected of a run there


def compute_figure(study: Study) -> str | None:
    """Error against compute on log axes, all families; None where there is no law in compute."""
    series = [_in_compute(f, study) for f in study.families if IN_COMPUTE in f.laws]
    return _figure(study.target, "compute", series) if series else None


def size_figure(study: Study, family: FamilyStudy) -> str | None:
    """Error against samples on log axes, one curve a size; None where there is no such law."""
    if IN_SIZE not in family.laws:
        return None
    series = _in_size(family.laws[IN_SIZE].fit)
    return _figure(study.target, "samples seen", series)


def _in_compute(family: FamilyStudy, study: Study) -> Series:
    fit = family.laws[IN_COMPUTE].fit
    x = fit.inputs["compute"]
    budgets = np.array(study.budgets)
    ends = np.array([x.min(), x.max(), *budgets])
    curve_x = np.geomspace(ends.min(), ends.max(), CURVE_POINTS)
    left = ~np.isin(family.runs.inputs["compute"], x) | ~np.isin(family.runs.error, fit.error)
    return Series(
        family.runs.family,
        x,
        fit.error,
        fit.residuals,
        curve_x,
        fit.law_band({"compute": curve_x}),
        (family.runs.inputs["compute"][left], family.runs.error[left]),
        (budgets, fit.predict({"compute": budgets})) if len(budgets) else None,
    )


def _in_size(fit: Fit) -> list[Series]:
    keys = [key for key in ("parameters", "unique_samples") if key in fit.inputs]
    table = np.stack([fit.inputs[key] for key in keys], axis=1)
    series = []
    for values in np.unique(table, axis=0):
        mine = (table == values).all(axis=1)
        x = fit.inputs["samples"][mine]
        curve_x = np.geomspace(x.min(), x.max(), CURVE_POINTS)
        fixed = {key: np.full(CURVE_POINTS, v) for key, v in zip(keys, values, strict=True)}
        label = f"{number(values[0])} parameters"
        band = fit.law_band({**fixed, "samples": curve_x})
        series.append(Series(label, x, fit.error[mine], fit.residuals[mine], curve_x, band))
    return series


def _figure(target: str, x_label: str, series: Sequence[Series]) -> str:
    labels = list(dict.fromkeys(one.label for one in series))
    column = LETTER * (4 + max(map(len, labels)))
    columns = max(1, int((WIDTH - LEFT) // column))
    legend = LEGEND_LINE * -(-len(labels) // columns)
    figure = new_figure(WIDTH, HEIGHT + legend, f"{target} against {x_label}: runs and law")
    x = np.concatenate([np.concatenate([s.x, s.curve_x, *_first(s.others)]) for s in series])
    y = np.concatenate([np.concatenate([s.error, s.curve.value, *_heights(s)]) for s in series])
    left = 100 * np.expm1(np.concatenate([s.residuals for s in series]))
    most = max(1.2 * float(np.abs(left).max()), 0.1)
    x_range = float(x.min() / MARGIN), float(x.max() * MARGIN)
    inner = WIDTH - LEFT - RIGHT
    main = Panel(
        figure,
        LEFT,
        TOP + legend,
        inner,
        MAIN,
        x_range,
        (float(y.min() / MARGIN), float(y.max() * MARGIN)),
    )
    below = Panel(
        figure, LEFT, TOP + legend + MAIN + GAP, inner, RESIDUALS, x_range, (-most, most), False
    )
    main.axes(None, target)
    below.axes(x_label, "measured over law", " %")
    for one in series:
        _draw(main, below, one, colour(labels.index(one.label)))
    for place, label in enumerate(labels):
        across = LEFT + place % columns * column
        down = 16 + place // columns * LEGEND_LINE
        text(figure, across, down, "●", fill=colour(place))
        text(figure, across + 14, down, label)
    return render(figure)


def _draw(main: Panel, below: Panel, one: Series, shade: str) -> None:
    main.band(one.curve_x, one.curve.low, one.curve.high, shade)
    main.curve(one.curve_x, one.curve.value, shade)
    if one.others:
        main.points(*one.others, fill=shade, radius=2.5, opacity=0.35)
    main.points(one.x, one.error, shade)
    if one.predicted:
        x, band = one.predicted
        for place, budget in enumerate(x):
            main.bar(budget, band.value[place], band.low[place], band.high[place], shade)
    below.points(one.x, 100 * np.expm1(one.residuals), shade, radius=3)


def _first(pair: tuple[Array, Array] | None) -> list[Array]:
    return [pair[0]] if pair else []


def _heights(one: Series) -> list[Array]:
    found = [one.others[1]] if one.others else []
    if one.predicted:
        band = one.predicted[1]
        found += [band.low, np.minimum(band.high, 2 * band.value)]
    return found
