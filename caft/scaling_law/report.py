"""What a study found, for people and programs: lines of a table, JSON, CSV and one HTML page.
Last step of `python -m caft.scaling_law` and of the sweep's fit."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import jinja2
import numpy as np

from caft.errors import StorageError
from caft.scaling_law.figures import compute_figure, number, size_figure
from caft.scaling_law.figures_isoflop import isoflop_figure
from caft.scaling_law.lines import Line, lines, shown
from caft.scaling_law.study import Study
from caft.scaling_law.verdict import verdict

TEMPLATE = Path(__file__).parent / "report.html.j2"
JSON_FILE, CSV_FILE, HTML_FILE = "fit.json", "fit.csv", "fit.html"


def write_report(
    studies: Sequence[Study], facts: Mapping[str, str], folder: Path
) -> tuple[Path, ...]:
    """Write fit.json, fit.csv and fit.html, which needs nothing beside it.

    Args:
        facts: where the numbers come from, label -> text.

    Raises:
        StorageError: a folder that cannot be written to.
    """
    every = {study.target: lines(study) for study in studies}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / name for name in (JSON_FILE, CSV_FILE, HTML_FILE)]
        record = {"facts": dict(facts), "studies": [_record(s, every[s.target]) for s in studies]}
        content = json.dumps(_plain(record), indent=1, allow_nan=False)
        paths[0].write_text(content + "\n", encoding="utf-8")
        with paths[1].open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Line)])
            writer.writeheader()
            writer.writerows(asdict(line) for found in every.values() for line in found)
        paths[2].write_text(_page(studies, every, facts), encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot be written ({error.strerror}); give another --output"
        ) from error
    return tuple(paths)


def table(study: Study) -> str:
    """The study's numbers as text, with what is wrong with it below."""
    cells = [("family", "law", "what", "at compute", "value", "95% interval", "note")]
    for line in shown(lines(study)):
        what = line.name if line.kind == "parameter" else f"{line.kind}: {line.name}"
        value = "" if line.value is None else number(line.value)
        measured = "" if line.measured is None else f"measured {number(line.measured)}"
        notes = ", ".join(filter(None, (measured, line.note)))
        at = "" if line.at is None else number(line.at)
        cells.append((line.family, line.law, what, at, value, line.interval, notes))
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    rows = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    warnings = [f"warning: {who}: {what}" for who, what in _problems(study)]
    return "\n".join([verdict(study), *rows, *warnings])


def _problems(study: Study) -> list[tuple[str, str]]:
    """Of whom or what, and what is wrong."""
    found: list[tuple[str, str]] = []
    for family in study.families:
        name = family.runs.family
        found += [(name, problem) for problem in family.problems]
        for choice in family.laws.values():
            found += [(f"{name}, {choice.chosen}", p) for p in choice.fit.problems]
            found += [(f"{name}, {form}", reason) for form, reason in choice.refused.items()]
    return list(dict.fromkeys(found))


def _record(study: Study, found: Sequence[Line]) -> dict[str, object]:
    laws = [
        {
            "family": family.runs.family,
            "in": kind,
            "form": choice.chosen,
            "formula": choice.fit.formula,
            "parameters": {
                e.name: {
                    "meaning": e.meaning,
                    "identified": e.identified,
                    "value": e.best if e.identified else None,
                    "low": e.low,
                    "high": e.high,
                    "problem": e.problem,
                }
                for e in choice.fit.estimates
            },
            "spread": choice.fit.spread,
            "points": {
                **{name: column.tolist() for name, column in choice.fit.inputs.items()},
                "error": choice.fit.error.tolist(),
                "residual": choice.fit.residuals.tolist(),
            },
        }
        for family in study.families
        for kind, choice in family.laws.items()
    ]
    problems = [{"of": who, "problem": what} for who, what in _problems(study)]
    rest = [asdict(line) for line in found if line.kind != "parameter"]
    return {
        "target": study.target,
        "verdict": verdict(study),
        "laws": laws,
        "numbers": rest,
        "problems": problems,
    }


def _plain(value: object) -> object:
    """With null in the place of numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


def _page(
    studies: Sequence[Study], every: Mapping[str, Sequence[Line]], facts: Mapping[str, str]
) -> str:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["number"] = lambda value: "" if value is None else number(value)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        facts=facts,
        studies=[
            {
                "target": study.target,
                "verdict": verdict(study),
                "lines": shown(every[study.target]),
                "laws": [
                    (family.runs.family, choice)
                    for family in study.families
                    for choice in family.laws.values()
                ],
                "compute_figure": compute_figure(study),
                "size_figures": [
                    (family.runs.family, figure)
                    for family in study.families
                    if (figure := size_figure(study, family))
                ],
                "isoflop_figures": [
                    (family.runs.family, isoflop_figure(study.target, family.isoflop))
                    for family in study.families
                    if family.isoflop
                ],
                "problems": _problems(study),
            }
            for study in studies
        ],
    )
