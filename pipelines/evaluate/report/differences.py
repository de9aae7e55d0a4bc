"""What the comparison says of evaluations against the first: paired differences on the same images,
settings in which they were measured otherwise, and runs that differ by their seed alone.
From metrics.json and the tables of items to what the template writes, still as fractions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from caft.metrics import Difference, Estimate, difference
from pipelines.evaluate.items import Tables, corrected, estimates
from pipelines.evaluate.report.curves import Results, own_value
from pipelines.evaluate.report.names import COMPARED

Items = Mapping[str, Tables]  # of an evaluation, by benchmark


def paired_differences(
    evaluations: Sequence[tuple[Results, Items]],
) -> list[tuple[int, str, str, Difference]]:
    """How much more than the first each other evaluation has: its number, benchmark, measure, and
    the difference, with p corrected for all that are given (Holm).

    Evaluations that read other data, or of which no tables are kept, have none.
    """
    (first, first_items), *others = evaluations
    asked: dict[tuple[int, str, str], Difference] = {}
    for benchmark in first["benchmarks"]:
        base = _estimates(first, first_items, benchmark)
        for n, (results, items) in enumerate(others, 1):
            if base and same_data(first, results, benchmark):
                found = _estimates(results, items, benchmark)
                for measure in base.keys() & found.keys():
                    asked[n, benchmark, measure] = difference(base[measure], found[measure])
    order = sorted(asked, key=lambda key: (key[1], list(COMPARED).index(key[2]), key[0]))
    by_name = corrected({str(n): asked[key] for n, key in enumerate(order)})
    return [(*key, by_name[str(n)]) for n, key in enumerate(order)]


def _estimates(results: Results, items: Items, benchmark: str) -> dict[str, Estimate]:
    """Of the measures that are compared, each of the score that the model is judged by."""
    tables = items.get(benchmark)
    if not tables:
        return {}
    found = estimates(tables, int(results["benchmarks"][benchmark]["images"]))
    names = {measure: f"{results['score']}_{measure}" for measure in COMPARED}
    return {
        measure: found[name if name in found else measure]
        for measure, name in names.items()
        if name in found or measure in found
    }


def same_data(first: Results, other: Results, benchmark: str) -> bool:
    """Whether both evaluations read the same version and split of a benchmark."""
    read = [results["datasets"].get(benchmark) for results in (first, other)]
    keys = ("fingerprint", "split")
    return None not in read and all(read[0][key] == read[1][key] for key in keys)


def protocol_changes(evaluations: Mapping[str, Results], benchmark: str) -> list[str]:
    """Settings of a benchmark's protocol that are not the same in all evaluations, in words;
    earlier versions stored none."""
    stored = {
        label: results["datasets"][benchmark].get("protocol", {"version": 1})
        for label, results in evaluations.items()
        if benchmark in results["benchmarks"]
    }
    keys = dict.fromkeys(key for protocol in stored.values() for key in protocol)
    known = {key: [p[key] for p in stored.values() if key in p] for key in keys}
    return [
        f"{key.replace('_', ' ')}: "
        + ", ".join(f"{_words(p[key])} ({label})" for label, p in stored.items() if key in p)
        for key, values in known.items()
        if any(value != values[0] for value in values)
    ]


def _words(value: Any) -> str:
    return "; ".join(map(str, value)) if isinstance(value, list) else str(value)


def joined_seeds(evaluations: Mapping[str, Results]) -> list[dict[str, Any]]:
    """Evaluations of equal runs at an equal step, which differ by the seed alone: of each such
    group its `labels`, and by benchmark and measure the `mean` and the standard deviation."""
    groups: dict[tuple[str, int], dict[str, Results]] = {}
    for label, results in evaluations.items():
        if recipe := results.get("recipe"):
            groups.setdefault((recipe, results["step"]), {})[label] = results
    return [
        {"labels": list(members), "rows": rows}
        for members in groups.values()
        if len({results["series"] for results in members.values()}) > 1
        and (rows := _spreads(list(members.values())))
    ]


def _spreads(members: Sequence[Results]) -> list[dict[str, Any]]:
    names = dict.fromkeys(name for results in members for name in results["benchmarks"])
    rows = []
    for benchmark in names:
        for measure in COMPARED:
            found = [own_value(results, benchmark, measure) for results in members]
            values = [value for value in found if value is not None]
            if len(values) > 1:
                row = {"benchmark": benchmark, "measure": measure, "seeds": len(values)}
                spread = {
                    "mean": float(np.mean(values)),
                    "deviation": float(np.std(values, ddof=1)),
                }
                rows.append(row | spread)
    return rows
