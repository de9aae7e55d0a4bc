"""Rows of the tables on pages: recalls, published numbers, changed captions and whatever else.
From metrics.json to what the templates write, still as fractions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from caft.metrics.retrieval import RECALL_AT
from pipelines.evaluate.report.curves import AT_1, CUT, Results, own_value
from pipelines.evaluate.report.names import MEASURES, SCORE_NAMES, variant_name, variant_order
from pipelines.evaluate.report.published import Published, Source, published
from pipelines.evaluate.results import SCORES, WAYS

# Measures of localisation by what they are of, each with its heading.
LOCALISED = {
    "Heat map": {"miou": "mIoU", "oiou": "oIoU", "precision_50": "P@0.5", "pointing": "pointing"},
    "Centre box": {
        "centre_box_miou": "mIoU",
        "centre_box_oiou": "oIoU",
        "centre_box_precision_50": "P@0.5",
    },
}
LOCALISATION = tuple(key for measures in LOCALISED.values() for key in measures)
COUNTS = ("images", "texts", "regions")


def recall_cells(numbers: Mapping[str, Any], score: str) -> dict[str, list[dict[str, Any]]]:
    """By way of retrieval the recalls of one score with their intervals, then the median rank."""
    cells = {}
    for way in WAYS:
        names = [f"{score}_{way}_r{k}" for k in RECALL_AT]
        recalls: list[dict[str, Any]] = [
            {"value": numbers[name], "interval": numbers["intervals"].get(name)} for name in names
        ]
        cells[way] = [*recalls, {"median_rank": numbers[f"{score}_{way}_median_rank"]}]
    return cells


def retrieval_rows(results: Results) -> list[dict[str, Any]]:
    """Each benchmark with captions, its rows by score, and what chance would reach."""
    return [
        {
            "name": name,
            "count": int(numbers["images"]),
            "rows": [
                {"score": SCORE_NAMES[score], "cells": recall_cells(numbers, score)}
                for score in SCORES
                if f"{score}_{WAYS[0]}_r1" in numbers
            ],
        }
        for name, numbers in results["benchmarks"].items()
        if any(f"{score}_{WAYS[0]}_r1" in numbers for score in SCORES)
    ]


def published_rows(
    results: Results,
) -> tuple[list[str], list[dict[str, Any]], dict[Source, list[str]]]:
    """The models with published numbers on these benchmarks; a row for each measure: what was
    measured here, and by model what was published and how much more was measured, of the same
    score; and the models by where their numbers come from."""
    models: dict[str, None] = {}
    sources: dict[Source, dict[str, None]] = {}
    rows = []
    for benchmark, numbers in results["benchmarks"].items():
        known = published(benchmark)
        for measure in MEASURES if known else ():
            assert known is not None
            said = {m: values[measure] for m, values in known.models.items() if measure in values}
            value = own_value(results, benchmark, measure)
            if not said or value is None:
                continue
            models |= dict.fromkeys(said)
            for model in said:
                sources.setdefault(known.sources[model], {})[model] = None
            other_size = known.images is not None and known.images != numbers["images"]
            rows.append(
                {
                    "benchmark": benchmark,
                    "measure": MEASURES[measure],
                    "value": value,
                    "interval": numbers.get("intervals", {}).get(f"{results['score']}_{measure}"),
                    "said": {
                        m: _said(numbers, measure, value, v, known.scores.get(m))
                        for m, v in said.items()
                    },
                    "images": int(numbers["images"]),
                    "published_images": known.images if other_size else None,
                }
            )
    return list(models), rows, {source: list(names) for source, names in sources.items()}


def _said(
    numbers: Mapping[str, Any], measure: str, own: float, value: float, score: str | None
) -> dict[str, Any]:
    """A published value, and how much more was measured of the score that it is of."""
    ours = numbers.get(f"{score}_{measure}") if score else own
    more = None if ours is None else ours - value
    return {"value": value, "more": more, "score": SCORE_NAMES[score] if score else None}


def control_rows(results: Results, benchmark: str) -> list[dict[str, Any]]:
    """R@1 with captions as written, then with those changed in their order or by noise; `more`
    is by how much it is greater than as written, `difference` says how surely."""
    controls = results["benchmarks"][benchmark].get("controls", {})
    shown = {name: recall for name, recall in controls.items() if not CUT.fullmatch(name)}
    if not shown:
        return []
    base = {measure: own_value(results, benchmark, measure) or 0.0 for measure in AT_1}
    told = results["benchmarks"][benchmark].get("control_differences", {})
    rows: list[dict[str, Any]] = [
        {
            "name": "As written",
            "cells": [{"value": base[m], "more": None, "difference": None} for m in AT_1],
        }
    ]
    for name, recall in sorted(shown.items(), key=lambda item: variant_order(item[0])):
        cells = [
            {
                "value": recall[m],
                "more": recall[m] - base[m],
                "difference": told.get(f"controls/{name}/{m}"),
            }
            for m in AT_1
        ]
        changed = recall["changed_share"]
        rows.append({"name": variant_name(name), "cells": cells, "changed": changed})
    return rows


def control_table(
    evaluations: Mapping[str, Results], benchmark: str
) -> list[tuple[str, list[dict[str, Any] | None]]]:
    """Text to image R@1 with changed captions: a row for each change, a cell for each
    evaluation, None where it was not measured."""
    rows = {
        label: {row["name"]: row["cells"][0] for row in control_rows(results, benchmark)}
        for label, results in evaluations.items()
        if benchmark in results["benchmarks"]
    }
    names = dict.fromkeys(name for found in rows.values() for name in found)
    return [(name, [rows.get(label, {}).get(name) for label in evaluations]) for name in names]


def other_numbers(numbers: Mapping[str, Any]) -> dict[str, float]:
    """A benchmark's numbers that no other table shows, by name."""
    scored = tuple(f"{score}_{way}_" for score in SCORES for way in WAYS)
    return {
        key: value
        for key, value in numbers.items()
        if isinstance(value, float)
        and key not in (*COUNTS, *LOCALISATION)
        and not key.startswith(scored)
    }


Column = tuple[str, str]  # benchmark and measure


def overview(
    evaluations: Sequence[Results],
) -> tuple[list[Column], list[list[dict[str, Any]]], dict[str, list[float | None]]]:
    """What evaluations and publications say of each benchmark.

    Returns:
        the columns that any evaluation has; a row of cells for each evaluation: `value`, None
        where it was not measured, `more` than the first evaluation has, and whether it is the
        `best`; and published values by model.
    """
    names = dict.fromkeys(name for results in evaluations for name in results["benchmarks"])
    columns: list[Column] = []
    cells = []
    said: dict[Column, dict[str, float]] = {}
    for benchmark in names:
        known = published(benchmark)
        for measure in MEASURES:
            values = [own_value(results, benchmark, measure) for results in evaluations]
            measured = [value for value in values if value is not None]
            if not measured:
                continue
            column = (benchmark, measure)
            columns.append(column)
            best, first = max(measured), values[0]
            cells.append([_cell(value, first, best) for value in values])
            numbers = known.models.items() if known else ()
            said[column] = {
                _with_score(model, known): v[measure] for model, v in numbers if measure in v
            }
    models = dict.fromkeys(model for by_model in said.values() for model in by_model)
    beside = {model: [said[column].get(model) for column in columns] for model in models}
    return columns, [list(row) for row in zip(*cells, strict=True)], beside


def _with_score(model: str, known: Published | None) -> str:
    """A model's name, with the score that its number is of where it is not the usual one."""
    score = known.scores.get(model) if known else None
    return f"{model} ({SCORE_NAMES[score].lower()} score)" if score else model


def _cell(value: float | None, first: float | None, best: float) -> dict[str, Any]:
    more = None if value is None or first is None else value - first
    return {"value": value, "more": more, "best": value == best}
