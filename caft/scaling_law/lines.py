"""Every number of a study as a line of one table: parameters, held-out runs, predictions, advice,
comparisons. Between the study and report.py, which writes them for people and programs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from caft.scaling_law.choice import Choice
from caft.scaling_law.compare import Comparison
from caft.scaling_law.figures import number
from caft.scaling_law.fitted import Band, Scatter
from caft.scaling_law.joint import Together
from caft.scaling_law.optimum import growth
from caft.scaling_law.study import IN_COMPUTE, IN_SIZE, FamilyStudy, Rivals, Study

EXTRAPOLATED = "outside the runs"
FARTHEST = 10.0  # times less than any error measured: no prediction through the loss
PLACES = 5  # computes at which families are compared in pairs
MOST_SHOWN = 40  # held-out runs of a form that a reader is shown


@dataclass(frozen=True)
class Line:
    """One number that a study gives, with its 95% interval; None where it must not be used."""

    target: str
    family: str
    law: str  # its form
    kind: str  # parameter, scatter, held out, prediction, of a loss, optimum, ...
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
        found += _of_stages(study, family)
        found += _of_optimum(study, family)
        found += _of_isoflop(study, family)
    for rivals in study.comparisons:
        found += _of_rivals(study, rivals)
    return found


def shown(found: Sequence[Line]) -> list[Line]:
    """What a reader is shown of all lines: of each form's held-out runs some, evenly chosen."""
    runs: dict[tuple[str, str], list[Line]] = {}
    for line in found:
        if line.kind == "held out" and line.at is not None:
            runs.setdefault((line.family, line.law), []).append(line)
    kept = {
        id(of[place])
        for of in runs.values()
        for place in np.linspace(0, len(of) - 1, min(len(of), MOST_SHOWN)).astype(int)
    }
    left_out = {id(line) for of in runs.values() for line in of} - kept
    result = []
    for line in found:
        count = len(runs.get((line.family, line.law), ()))
        if line.kind == "held out" and line.at is None and count > MOST_SHOWN:
            line = replace(line, note=f"{line.note}; {MOST_SHOWN} of {count:,} below")
        if id(line) not in left_out:
            result.append(line)
    return result


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
        points, error = held_out.with_interval, 100 * math.expm1(held_out.log_error)
        note = f"{held_out.inside} of {points} inside their intervals" if points else "no intervals"
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


def _of_stages(study: Study, family: FamilyStudy) -> Iterator[Line]:
    """Predictions through the loss, and the law of the error of a loss."""
    if family.stages is None:
        return
    fit = family.stages.error
    about = (study.target, family.runs.family, fit.form.name)
    for e in fit.estimates:
        value = e.best if e.identified else None
        yield Line(*about, "of a loss", e.name, None, value, e.low, e.high, None, e.meaning)
    band = family.stages.predict(study.budgets)
    end = family.stages.loss.inputs["compute"].max()
    notes = ["" if budget <= end else EXTRAPOLATED for budget in study.budgets]
    label = f"{study.target}, through the loss"
    for line, note in zip(
        _of_band((*about, "prediction", label), study.budgets, band, notes), notes, strict=True
    ):
        # A difference of two terms becomes negative where the loss is far below all measured.
        if line.value is not None and line.value < fit.error.min() / FARTHEST:
            line = replace(line, value=None, low=None, high=None, note=f"too far {note}")
        yield line


def _of_isoflop(study: Study, family: FamilyStudy) -> Iterator[Line]:
    """The best size of each budget, and how it grows by each approach."""
    if family.isoflop is None:
        return
    about = (study.target, family.runs.family, "", "equal compute")
    for found in family.isoflop.growths:
        label = "exponent of size in compute"
        yield from _of_band((*about, label), (None,), found.exponent, [f"by {found.approach}"])
    for profile in family.isoflop.profiles:
        note = f"of {len(profile.error)} runs of this compute"
        yield Line(*about, "parameters", profile.compute, profile.best, None, None, None, note)


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
    if rivals.laws is not None:
        yield from _of_comparison(about, other, rivals.laws, "")
    if rivals.together is not None:
        comparison = rivals.together.compare(_places(study, rivals.together))
        yield from _of_comparison(about, other, comparison, "shared floor")


def _places(study: Study, together: Together) -> np.ndarray:
    """The middle of the computes that both families have runs at, and the budgets."""
    inputs = together.fit.inputs
    columns = [inputs["compute"][inputs["family"] == f] for f in np.unique(inputs["family"])]
    low, high = max(c.min() for c in columns), min(c.max() for c in columns)
    return np.array([np.sqrt(low * high), *study.budgets])


def _of_comparison(
    about: tuple[str, str, str, str], other: str, comparison: Comparison, how: str
) -> Iterator[Line]:
    notes = [
        ", ".join(
            filter(None, (how, "" if apart else "not told apart", EXTRAPOLATED if out else ""))
        )
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
