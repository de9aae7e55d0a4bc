"""What of an evaluation its MLflow run shows: headline numbers as metrics, the rest as tables.
Between results.py and stage.py; metrics.json, which is attached to the run, has everything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from caft.metrics.retrieval import RECALL_AT
from pipelines.evaluate.results import SCORES, WAYS

MOST_HEADLINES = 12  # of a benchmark: each is a chart of its own


def headlines(results: Mapping[str, Any], own: str) -> dict[str, float]:
    """The dozen numbers at most of one benchmark that tables of models show, best known first, from
    `BenchmarkResults.as_json`; `own` is the score that the model is judged by."""
    names = [f"{own}_{way}_r{k}" for way in WAYS for k in RECALL_AT]
    names += [f"whole_{way}_r1" for way in WAYS]
    names += ["miou", "pointing", "precision_50", "semantic_miou", f"{own}_top1", f"{own}_top5"]
    shown = [name for name in dict.fromkeys(names) if name in results]
    return {name: results[name] for name in shown[:MOST_HEADLINES]}


def detail_tables(
    benchmarks: Mapping[str, Mapping[str, Any]], own: str
) -> dict[str, list[dict[str, Any]]]:
    """All that `headlines` leaves out, as rows of tables by name; a table without rows is left
    out."""
    tables: dict[str, list[dict[str, Any]]] = {
        name: [] for name in ("scores", "controls", "control_differences", "alphas", "lengths")
    }
    for benchmark, results in benchmarks.items():
        first = {"benchmark": benchmark}
        for key, value in results.items():
            if isinstance(value, float):
                low, high = results["intervals"].get(key, (None, None))
                kind, _, metric = key.partition("_")
                named = (kind, metric) if kind in SCORES else ("", key)
                row = dict(zip(("score", "metric"), named, strict=True))
                tables["scores"].append(first | row | {"value": value, "low": low, "high": high})
        for alpha, recall in results["alphas"].items():
            tables["alphas"].append(first | {"alpha": alpha} | recall)
        for variant, recall in results["controls"].items():
            tables["controls"].append(first | {"score": own, "captions": variant} | recall)
        for name, found in results["control_differences"].items():
            tables["control_differences"].append(first | {"control": name} | found)
        for unit, groups in results["lengths"].items():
            tables["lengths"] += [first | {"score": own, "unit": unit} | group for group in groups]
    return {name: rows for name, rows in tables.items() if rows}
