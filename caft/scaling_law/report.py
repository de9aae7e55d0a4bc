"""What a study found, for people and programs: lines of a table, JSON, CSV and one HTML page.
Last step of `python -m caft.scaling_law` and of the sweep's fit."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import jinja2
import numpy as np

from caft.errors import StorageError
from caft.scaling_law.choice import Choice
from caft.scaling_law.figures import compute_figure, number, size_figure
from caft.scaling_law.fitted import Band, Scatter
from caft.scaling_law.optimum import growth
from caft.scaling_law.study import IN_COMPUTE, IN_SIZE, FamilyStudy, Rivals, Study
from caft.scaling_law.verdict import verdict

TEMPLATE = Path(__file__).parent / "report.html.j2"
JSON_FILE, CSV_FILE, HTML_FILE = "fit.json", "fit.csv", "fit.html"
EXTRAPOLATED = "outside the runs"
PLACES = 5  # computes at which families are compared in pairs


@dataclass(frozen=True)
class Line:
    """One number that a study gives, with its 95% interval; None where it must not be used."""

    target: str
    family: str
    law: str  # its form
    kind: str  # parameter, scatter, held out, prediction, optimum, comparison
    name: str
    at: float | None  # compute, where it is of one
    value: float | None
    low: float | None
    high: float | None
    measured: float | None = None
    note: str = ""

    @property
    def interval(self) -> str:
        if self.low is None or self.high is None:
            return ""
        if self.low == -math.inf:
            return "no interval"
        return f"{number(self.low)} to {number(self.high)}"


def lines(study: Study) -> list[Line]:
    """Every number of a study."""
    found: list[Line] = []
    for family in study.families:
        for choice in family.laws.values():
            found += _of_law(study, family, choice)
        if IN_COMPUTE in family.laws and study.budgets:
            fit = family.laws[IN_COMPUTE].fit
            inside = fit.inputs["compute"].max()
            notes = ["" if budget <= inside else EXTRAPOLATED for budget in study.budgets]
            band = fit.predict({"compute": study.budgets})
            about = (study.target, family.runs.family, fit.form.name, "prediction")
            found += _of_band((*about, study.target), study.budgets, band, notes)
        found += _of_optimum(study, family)
    for rivals in study.comparisons:
        found += _of_rivals(study, rivals)
    return found


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
    for line in lines(study):
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


def _of_law(study: Study, family: FamilyStudy, choice: Choice) -> Iterator[Line]:
    fit = choice.fit
    about = (study.target, family.runs.family, fit.form.name)
    for e in fit.estimates:
        value = e.best if e.identified else None
        note = "" if e.problem is None else f"not identified: {e.problem}"
        yield Line(*about, "parameter", e.name, None, value, e.low, e.high, None, note)
    yield from _of_scatter(about, fit.scatter)
    for name, held_out in choice.held_out.items():
        about = (study.target, family.runs.family, name)
        points, error = len(held_out.error), 100 * math.expm1(held_out.log_error)
        note = f"{held_out.inside} of {points} inside their intervals"
        yield Line(*about, "held out", "error in %", None, error, None, None, None, note)
        if "compute" not in held_out.inputs:
            continue
        band = held_out.prediction
        for place, compute in enumerate(held_out.inputs["compute"].tolist()):
            value, low, high = (float(c[place]) for c in (band.value, band.low, band.high))
            measured = float(held_out.error[place])
            yield Line(*about, "held out", study.target, compute, value, low, high, measured)


def _of_scatter(about: tuple[str, str, str], scatter: Scatter) -> Iterator[Line]:
    """What lies between runs and law, in per cent of the error."""
    shape = f"runs test p = {scatter.runs_test:.2g}"
    left = 100 * scatter.left
    yield Line(*about, "scatter", "of runs about the law in %", None, left, None, None, None, shape)
    noise = None if scatter.noise is None else 100 * scatter.noise
    note = f"from {scatter.source}" if noise is not None else "unknown: give seeds or --test-size"
    yield Line(*about, "scatter", "chance of a run in %", None, noise, None, None, None, note)
    misfit = None if scatter.misfit is None else 100 * scatter.misfit
    yield Line(*about, "scatter", "misfit of the law in %", None, misfit, None, None)


def _of_optimum(study: Study, family: FamilyStudy) -> Iterator[Line]:
    optimum = family.optimum
    if optimum is None:
        return
    fit = family.laws[IN_SIZE].fit
    about = (study.target, family.runs.family, fit.form.name, "optimum")
    for name, band in zip(("size", "samples"), growth(fit), strict=True):
        label = f"exponent of {name} in compute"
        note = "" if fit.form.name == "size_samples" else "where nothing is repeated"
        yield from _of_band((*about, label), (None,), band, [note])
    notes = [EXTRAPOLATED if beyond else "" for beyond in optimum.beyond]
    for name, band in (
        ("parameters", optimum.parameters),
        ("samples", optimum.samples),
        (study.target, optimum.error),
    ):
        yield from _of_band((*about, name), optimum.compute.tolist(), band, notes)


def _of_rivals(study: Study, rivals: Rivals) -> Iterator[Line]:
    about = (study.target, rivals.one, "", "comparison")
    other, pairs = rivals.other, rivals.pairs
    if pairs is not None:
        places = np.geomspace(pairs.compute.min(), pairs.compute.max(), PLACES)
        band = pairs.at(places)
        apart = (band.high < 1) | (band.low > 1)
        notes = [f"in pairs{'' if differ else ', not told apart'}" for differ in apart]
        yield from _of_band((*about, f"error over that of {other}"), places.tolist(), band, notes)
        if pairs.crossing is not None:
            label = f"compute where it equals {other}"
            yield from _of_band((*about, label), (None,), pairs.crossing, ["in pairs"])
    for pair in rivals.runs:
        computes = " and ".join(map(number, pair.compute))
        note = f"z = {pair.z:.1f}, runs of compute {computes}"
        ratio = pair.error[0] / pair.error[1]
        label = f"single run's error over that of {other}"
        yield Line(*about, label, pair.compute[0], ratio, None, None, None, note)
    if rivals.laws is None:
        return
    comparison = rivals.laws
    notes = [
        ", ".join(filter(None, ("" if apart else "not told apart", EXTRAPOLATED if out else "")))
        for apart, out in zip(comparison.apart, comparison.beyond, strict=True)
    ]
    places = comparison.compute.tolist()
    label = f"law over that of {other}"
    yield from _of_band((*about, label), places, comparison.ratio, notes)
    label = f"times its compute that {other} needs"
    yield from _of_band((*about, label), places, comparison.multiple, notes)


def _of_band(
    about: tuple[str, str, str, str, str],
    places: Sequence[float | None],
    band: Band,
    notes: Sequence[str],
) -> Iterator[Line]:
    columns = (c.tolist() for c in (band.value, band.low, band.high))
    for place, *numbers, note in zip(places, *columns, notes, strict=True):
        value, low, high = numbers
        yield Line(*about, place, value, low, high, None, note)


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
            "formula": choice.fit.form.formula,
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
                "lines": every[study.target],
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
                "problems": _problems(study),
            }
            for study in studies
        ],
    )
