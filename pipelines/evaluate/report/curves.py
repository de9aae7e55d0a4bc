"""Which curves a page shows of evaluations: over caption length, weight, noise and training.
From metrics.json to charts; one evaluation has a line for each way of retrieval, several have a
chart for each way."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipelines.evaluate.report.charts import Chart, Line, line_chart
from pipelines.evaluate.report.names import MEASURES
from pipelines.evaluate.results import WAYS

Results = Mapping[str, Any]  # of one evaluation, as in metrics.json
Category = tuple[float, str]  # what it is ordered by, and its label
Points = list[tuple[float | Category, Mapping[str, float], str]]  # x, recalls by measure, note

CUT = re.compile(r"first_(\d+)_(sentences|tokens)")
NOISY = re.compile(r"noisy_(.+)")
AT_1 = tuple(f"{way}_r1" for way in WAYS)


def benchmark_charts(evaluations: Mapping[str, Results], benchmark: str) -> list[Chart]:
    """Charts of R@1 on one benchmark, for evaluations by their label that have it. A curve with
    fewer than two points is left out."""
    charts = []
    for title, x_title, points_of in CURVES:
        points = {
            label: points_of(results, benchmark)
            for label, results in evaluations.items()
            if benchmark in results["benchmarks"]
        }
        points = {label: found for label, found in points.items() if len(found) > 1}
        if not points:
            continue
        every = {x for found in points.values() for x, _, _ in found if isinstance(x, tuple)}
        categories = sorted(every)
        labels = [label for _, label in categories]
        if len(evaluations) == 1:
            (found,) = points.values()
            lines = [_line(MEASURES[measure], found, measure, categories) for measure in AT_1]
            charts.append(line_chart(title, x_title, lines, labels))
            continue
        for measure in AT_1:
            lines = [_line(label, found, measure, categories) for label, found in points.items()]
            charts.append(line_chart(f"{title}: {MEASURES[measure]}", x_title, lines, labels))
    return charts


def training_charts(series: Mapping[str, Sequence[Results]], benchmark: str) -> list[Chart]:
    """R@1 and mIoU of a benchmark over training steps, a line for each series of checkpoints."""
    charts = []
    for measure in (*AT_1, "miou"):
        lines = []
        for label, results in series.items():
            points = [
                (float(r["step"]), 100 * value)
                for r in sorted(results, key=lambda r: r["step"])
                if (value := own_value(r, benchmark, measure)) is not None
            ]
            if len(points) > 1:
                lines.append(Line(label, tuple(points), tuple(f"step {x:,.0f}" for x, _ in points)))
        if lines:
            charts.append(line_chart(MEASURES[measure], "training steps", lines))
    return charts


def own_value(results: Results, benchmark: str, measure: str) -> float | None:
    """A number of the score that the model is judged by, or one that depends on no score."""
    numbers = results["benchmarks"].get(benchmark, {})
    value = numbers.get(f"{results['score']}_{measure}", numbers.get(measure))
    return None if value is None else float(value)


def _line(name: str, found: Points, measure: str, categories: Sequence[Category]) -> Line:
    points = tuple(
        (float(categories.index(x)) if isinstance(x, tuple) else x, 100 * recall[measure])
        for x, recall, _ in found
    )
    return Line(name, points, tuple(note for _, _, note in found))


def _by_length(unit: str) -> Callable[[Results, str], Points]:
    def points(results: Results, benchmark: str) -> Points:
        groups = results["benchmarks"][benchmark].get("lengths", {}).get(unit, [])
        return [
            (
                (group["high"], f"≤{group['high']:.0f}"),
                group,
                f"{group['texts']:,.0f} captions of {group['low']:.0f} to {group['high']:.0f}",
            )
            for group in groups
        ]

    return points


def _cut(unit: str) -> Callable[[Results, str], Points]:
    def points(results: Results, benchmark: str) -> Points:
        controls = results["benchmarks"][benchmark].get("controls", {})
        found = {
            int(match[1]): recall
            for name, recall in controls.items()
            if (match := CUT.fullmatch(name)) and match[2] == unit
        }
        if not found:
            return []
        whole = ((math.inf, "all"), _as_written(results, benchmark), "as written")
        return [
            *(
                (
                    (length, f"{length:,}"),
                    found[length],
                    f"{found[length]['changed_share']:.0%} were longer",
                )
                for length in sorted(found)
            ),
            whole,
        ]

    return points


def _noise(results: Results, benchmark: str) -> Points:
    controls = results["benchmarks"][benchmark].get("controls", {})
    found = {
        100 * float(match[1]): recall
        for name, recall in controls.items()
        if (match := NOISY.fullmatch(name))
    }
    if not found:
        return []
    found[0.0] = _as_written(results, benchmark)
    return [(share, found[share], f"{share:g}% noise") for share in sorted(found)]


def _alphas(results: Results, benchmark: str) -> Points:
    swept = results["benchmarks"][benchmark].get("alphas", {})
    found = {float(alpha): recall for alpha, recall in swept.items()}
    if not found:
        return []
    found[float(results["alpha"])] = _as_written(results, benchmark)
    return [(alpha, found[alpha], f"α {alpha:g}") for alpha in sorted(found)]


def _as_written(results: Results, benchmark: str) -> dict[str, float]:
    found = {measure: own_value(results, benchmark, measure) for measure in AT_1}
    return {measure: value for measure, value in found.items() if value is not None}


# Title, what x is, and an evaluation's points on a benchmark.
CURVES: tuple[tuple[str, str, Callable[[Results, str], Points]], ...] = (
    ("By caption length", "sentences of a caption", _by_length("sentences")),
    ("By caption length", "tokens of a caption", _by_length("tokens")),
    ("Captions cut short", "sentences kept", _cut("sentences")),
    ("Captions cut short", "tokens kept", _cut("tokens")),
    ("By weight of the parts", "weight α of the part score", _alphas),
    ("Noisy captions", "% of sentences from other images", _noise),
)
