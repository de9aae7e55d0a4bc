"""Writes the two pages: the report on one evaluation, and several evaluations side by side.
From metrics.json and examples.json to HTML; a page loads nothing and runs nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from caft.metrics import Difference
from caft.metrics.retrieval import RECALL_AT
from caft.pictures import data_url, heat_colours
from pipelines.evaluate.report.charts import HEIGHT, WIDTH
from pipelines.evaluate.report.curves import Results, benchmark_charts, training_charts
from pipelines.evaluate.report.differences import (
    Items,
    joined_seeds,
    paired_differences,
    protocol_changes,
)
from pipelines.evaluate.report.names import COMPARED, MEASURES
from pipelines.evaluate.report.tables import (
    LOCALISED,
    control_rows,
    control_table,
    other_numbers,
    overview,
    published_rows,
    recall_cells,
    retrieval_rows,
)
from pipelines.evaluate.results import WAYS

TEMPLATES = Path(__file__).parent / "templates"
PICTURES = {  # how they were shown, by what `protocol` calls it
    "crop": "short side resized, centre cropped, as published (preprocess: crop)",
    "squash": "the whole picture, resized to a square (preprocess: squash)",
    "": "by the model's own preprocessing",
}
FEW_IMAGES = 100  # fewer say little of a model: intervals of some ten points
MOST_LINES = 8  # of a chart that compares; more cannot be told apart


@dataclass(frozen=True)
class Evaluated:
    """One finished evaluation, as the stage wrote it."""

    results: Results  # metrics.json
    examples: Mapping[str, Any]  # examples.json; empty if there is none
    items: Items = field(default_factory=dict)  # tables by benchmark; earlier versions kept none


def report_page(evaluated: Evaluated) -> str:
    """The report on one evaluation, as one HTML page."""
    results = evaluated.results
    models, beside, sources = published_rows(results)
    return (
        page_environment()
        .get_template("report.html.j2")
        .render(
            results=results,
            examples=evaluated.examples,
            facts=_facts(results),
            pages=results.get("run_pages", {}),  # not in results of earlier versions
            few=FEW_IMAGES,
            retrieval=retrieval_rows(results),
            published_models=models,
            published=beside,
            published_sources=sources,
            charts={n: benchmark_charts({"": results}, n) for n in results["benchmarks"]},
            controls={n: control_rows(results, n) for n in results["benchmarks"]},
            others={n: other_numbers(v) for n, v in results["benchmarks"].items()},
            measures=MEASURES,
            localised=LOCALISED,
        )
    )


def comparison_page(evaluations: Sequence[Evaluated]) -> str:
    """Several evaluations side by side, as one HTML page; differences are to the first."""
    results = [evaluated.results for evaluated in evaluations]
    labels = _labels(results)
    series = _series(results)
    drawn = _drawn(dict(zip(labels, results, strict=True)), list(series.values()))
    names = list(dict.fromkeys(name for r in results for name in r["benchmarks"]))
    columns, table, beside = overview(results)
    differences: dict[str, list[tuple[str, str, Difference]]] = {name: [] for name in names}
    paired = paired_differences([(e.results, e.items) for e in evaluations])
    for n, benchmark, measure, found in paired:
        differences[benchmark].append((labels[n], COMPARED[measure], found))
    by_label = dict(zip(labels, results, strict=True))
    return (
        page_environment()
        .get_template("comparison.html.j2")
        .render(
            results=results,
            labels=labels,
            columns=columns,
            table=table,
            published=beside,
            seeds=joined_seeds(by_label),
            asked=len(paired),
            compared=COMPARED,
            benchmarks={
                name: {
                    "rows": [
                        (label, recall_cells(r["benchmarks"][name], r["score"]))
                        for label, r in zip(labels, results, strict=True)
                        if f"{r['score']}_{WAYS[0]}_r1" in r["benchmarks"].get(name, {})
                    ],
                    "differences": differences[name],
                    "protocol": protocol_changes(by_label, name),
                    "charts": benchmark_charts(drawn, name),
                    "controls": control_table(drawn, name),
                    "training": training_charts(series, name),
                    "mixed": len({_data(r, name) for r in results if name in r["benchmarks"]}) > 1,
                    "pictures": _pictures(
                        {
                            label: evaluated.examples
                            for label, evaluated in zip(labels, evaluations, strict=True)
                            if label in drawn
                        },
                        name,
                    ),
                    "masks": any("miou" in r["benchmarks"].get(name, {}) for r in results),
                }
                for name in names
            },
            drawn=list(drawn),
            measures=MEASURES,
        )
    )


@cache
def page_environment(folder: Path = TEMPLATES) -> jinja2.Environment:
    """What pages are made with: templates of `folder`, which may import the report's macros."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, TEMPLATES]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["percent"] = lambda value: f"{100 * value:.1f}"
    environment.filters["change"] = lambda value: f"{100 * value:+.1f}".replace("-", "\u2212")
    environment.filters["p_value"] = lambda value: "<0.0001" if value < 1e-4 else f"{value:.2g}"
    environment.filters["signed"] = lambda value: f"{value:.2f}".replace("-", "\u2212")
    environment.filters["count"] = lambda value: f"{value:,.0f}"
    environment.globals |= {
        "ways": WAYS,
        "recall_at": RECALL_AT,
        "chart_size": (WIDTH, HEIGHT),
        "inf": math.inf,
        "ramp": data_url(heat_colours(np.tile(np.linspace(0, 1, 96), (8, 1)))),
    }
    return environment


def _facts(results: Results) -> dict[str, str]:
    """What the report says of where its numbers come from."""
    fingerprint = results["checkpoint_fingerprint"]
    facts = {"Checkpoint": f"{results['checkpoint']}, fingerprint {fingerprint}"}
    for name, data in results["datasets"].items():
        facts[f"Dataset of {name}"] = (
            f"{data['path']}, split {data['split']}, fingerprint {data['fingerprint']}"
        )
        if "pictures" in data:  # not in results from before there was a choice
            facts[f"Pictures of {name}"] = PICTURES[data["pictures"]]
        if "protocol" in data:
            facts[f"Protocol of {name}"] = _protocol(data["protocol"])
        if "training_data" in data:
            facts[f"Training data and {name}"] = data["training_data"]["how"]
    runs = {"evaluate": results["mlflow_run_id"], **results["links"]}
    return facts | {f"MLflow run, {stage}": run for stage, run in runs.items() if run}


def _protocol(protocol: Mapping[str, Any]) -> str:
    """All but how pictures are shown, which has a line of its own."""
    said = {key: value for key, value in protocol.items() if key != "pictures"}
    words = {k: "; ".join(v) if isinstance(v, list) else v for k, v in said.items()}
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in words.items())


def _data(results: Results, benchmark: str) -> tuple[str, str]:
    data = results["datasets"][benchmark]
    return data["fingerprint"], data["split"]


def _labels(results: Sequence[Results]) -> list[str]:
    """A name for each evaluation, as short as tells them apart."""
    by_step = [f"{r['model']}, step {r['step']:,}" for r in results]
    models = [r["model"] for r in results]
    for labels in (models, by_step, [f"{r['model']} {r['label']}" for r in results]):
        if len(set(labels)) == len(labels):
            return labels
    return [f"{n}: {label}" for n, label in enumerate(by_step, 1)]


def _series(results: Sequence[Results]) -> dict[str, list[Results]]:
    """Evaluations by training run, for curves over steps; names tell the runs apart."""
    found: dict[str, list[Results]] = {}
    for r in results:
        found.setdefault(r["series"], []).append(r)
    models = [members[0]["model"] for members in found.values()]
    return {
        model if models.count(model) == 1 else f"{model} {n}": members
        for n, (model, members) in enumerate(zip(models, found.values(), strict=True), 1)
    }


def _drawn(
    evaluations: dict[str, Results], series: Sequence[Sequence[Results]]
) -> dict[str, Results]:
    """The evaluations that get a line: all; where they are too many, of several training runs the
    last of each, of one run some at even distances."""
    if len(evaluations) <= MOST_LINES:
        return evaluations
    last = [max(members, key=lambda r: r["step"]) for members in series]
    chosen = [
        label for label, r in evaluations.items() if len(series) == 1 or any(r is m for m in last)
    ]
    places = np.linspace(0, len(chosen) - 1, min(MOST_LINES, len(chosen))).round().astype(int)
    return {chosen[place]: evaluations[chosen[place]] for place in places}


def _pictures(examples: Mapping[str, Mapping[str, Any]], benchmark: str) -> list[dict[str, Any]]:
    """Images that several evaluations show, with the heat maps of each for sentences that more
    than one has. `examples` is by the evaluation's label."""
    anatomies: dict[str, dict[str, Mapping[str, Any]]] = {}
    for label, shown in examples.items():
        for anatomy in shown.get("benchmarks", {}).get(benchmark, {}).get("anatomies", ()):
            anatomies.setdefault(anatomy["url"], {})[label] = anatomy
    pictures = []
    for url, by_label in anatomies.items():
        if len(by_label) < 2:
            continue
        first = next(iter(by_label.values()))
        rows = []
        for heat in first["heats"]:
            same = {
                label: found
                for label, anatomy in by_label.items()
                for found in anatomy["heats"]
                if found["text"] == heat["text"]
            }
            if len(same) > 1:
                rows.append({"text": heat["text"], "heats": same})
        segments = {label: anatomy["levels"] for label, anatomy in by_label.items()}
        pictures.append({"url": url, "src": first["image"], "rows": rows, "segments": segments})
    return pictures
