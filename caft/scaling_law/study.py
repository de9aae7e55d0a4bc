"""Everything that a table of runs says of one error: laws, held-out runs, advice, comparisons.
Between the fits and the report; the sweep's fit and the command line call `study_runs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from caft.errors import DataError, UnidentifiedError
from caft.scaling_law.choice import Choice, choose_form
from caft.scaling_law.compare import Comparison, Pairs, RunPair, compare, pair_fronts, pair_runs
from caft.scaling_law.fit import REPLICATES
from caft.scaling_law.form import ComputeForm
from caft.scaling_law.forms import CHOSEN_FROM, FORMS, SizeAndSamples
from caft.scaling_law.front import front
from caft.scaling_law.isoflop import IsoFLOP, isoflop
from caft.scaling_law.joint import Together, fit_together
from caft.scaling_law.optimum import Cost, Optimum, compute_optimal, measure_cost
from caft.scaling_law.runs import Runs
from caft.scaling_law.stages import Stages, fit_stages

BUDGET_STEP = 10.0  # times the largest compute measured, where no budget is asked for
IN_COMPUTE, IN_SIZE, IN_DATA = "compute", "size", "data"  # kinds of laws
KINDS = {
    IN_COMPUTE: [name for name, form in FORMS.items() if isinstance(form, ComputeForm)],
    IN_SIZE: [name for name, form in FORMS.items() if isinstance(form, SizeAndSamples)],
}
KINDS[IN_DATA] = [name for name in FORMS if name not in KINDS[IN_COMPUTE] + KINDS[IN_SIZE]]


@dataclass(frozen=True)
class FamilyStudy:
    """The laws of one family: one in compute, one in parameters and samples, where inputs allow."""

    runs: Runs
    laws: Mapping[str, Choice]  # by kind
    cost: Cost | None
    optimum: Optimum | None
    isoflop: IsoFLOP | None  # best sizes read off runs of equal compute
    stages: Stages | None  # the error through the loss, where runs have one
    problems: tuple[str, ...]  # of the runs, and why there is no law or no optimum


@dataclass(frozen=True)
class Rivals:
    """Two families compared in all ways that their runs allow."""

    one: str
    other: str
    laws: Comparison | None
    together: Together | None  # with one floor and one offset, where they share them
    pairs: Pairs | None
    runs: Sequence[RunPair]  # where the test's size is known


@dataclass(frozen=True)
class Study:
    """What the runs say of one error."""

    target: str
    budgets: tuple[float, ...]  # compute that predictions and advice are for
    families: tuple[FamilyStudy, ...]
    comparisons: tuple[Rivals, ...]  # of each two families


def study_runs(
    target: str,
    families: Sequence[Runs],
    budgets: Sequence[float] = (),
    envelope_bins: int | None = None,
    forms: Sequence[str] = CHOSEN_FROM,
    replicates: int = REPLICATES,
) -> Study:
    """Fit, choose, predict, advise and compare.

    Args:
        target: what the error is called.
        families: at least one.
        budgets: compute to predict, advise and compare at; ten times the largest, if none.
        envelope_bins: of laws in compute; None for the front.
        forms: those to choose from.

    Raises:
        DataError: a form that is not there, or no family that one of them can be fitted to.
    """
    unknown = [name for name in forms if name not in FORMS]
    if unknown:
        raise DataError(f"forms: {unknown[0]} is none; there are {', '.join(FORMS)}")
    computes = [
        runs.inputs["compute"] for runs in families if "compute" in runs.inputs and len(runs.error)
    ]
    if not budgets and computes:
        budgets = (BUDGET_STEP * float(max(column.max() for column in computes)),)
    studied = [_family(runs, budgets, envelope_bins, forms, replicates) for runs in families]
    if not any(family.laws for family in studied):
        raise DataError("; ".join(f"{f.runs.family}: {'; '.join(f.problems)}" for f in studied))
    pairs = [
        _rivals(one, other, budgets, replicates)
        for one, other in combinations(studied, 2)
        if "compute" in one.runs.inputs and len(one.runs.error) and len(other.runs.error)
    ]
    return Study(target, tuple(budgets), tuple(studied), tuple(pairs))


def _family(
    runs: Runs,
    budgets: Sequence[float],
    envelope_bins: int | None,
    forms: Sequence[str],
    replicates: int,
) -> FamilyStudy:
    if not len(runs.error):
        problems = (*runs.problems, "no law: none of its runs can be fitted to")
        return FamilyStudy(runs, {}, None, None, None, None, problems)
    laws, reasons = {}, []
    for kind, names in KINDS.items():
        able = [n for n in names if n in forms and set(FORMS[n].inputs) <= set(runs.inputs)]
        if not able or (kind == IN_DATA and _several_sizes(runs)):
            continue
        try:
            laws[kind] = choose_form(
                able,
                runs.inputs,
                runs.error,
                runs.groups,
                envelope_bins,
                replicates,
                runs.noise,
                runs.ceiling,
            )
        except DataError as error:
            reasons.append(f"no law in {kind}: {error}")
    if not laws and not reasons:
        reasons.append(f"none of {', '.join(forms)} goes with {list(runs.inputs)}")
    cost = optimum = None
    if IN_SIZE in laws and "compute" in runs.inputs:
        cost = measure_cost(*(runs.inputs[n] for n in ("compute", "parameters", "samples")))
        unique = runs.inputs.get("unique_samples")
        try:
            optimum = compute_optimal(
                laws[IN_SIZE].fit, budgets, cost, None if unique is None else unique.max()
            )
        except UnidentifiedError as error:
            reasons.append(str(error))
        if cost.problem:
            reasons.append(cost.problem)
    growths = stages = None
    if {"compute", "parameters"} <= set(runs.inputs):
        law = laws[IN_SIZE].fit if optimum is not None else None
        with suppress(DataError):  # no budgets with several sizes each
            growths = isoflop(
                runs.inputs["compute"], runs.inputs["parameters"], runs.error, law, cost
            )
    if growths is not None and growths.problem:
        reasons.append(growths.problem)
    if runs.loss is not None and "compute" in runs.inputs:
        told = np.isfinite(runs.loss)
        columns = [runs.inputs["compute"], runs.loss, runs.error]
        able = [name for name in KINDS[IN_COMPUTE] if name in forms]
        try:
            compute, loss, errors = (column[told] for column in columns)
            stages = fit_stages(compute, loss, errors, able, replicates, runs.ceiling)
        except DataError as problem:
            reasons.append(f"no law through the loss: {problem}")
    for choice in laws.values():
        judged = choice.held_out.get(choice.chosen)
        if judged is not None and judged.problem:
            reasons.append(f"{choice.chosen}: {judged.problem}")
        reasons += [f"{choice.chosen}: {what}" for what in _named_outliers(choice, runs)]
    problems = (*runs.problems, *reasons)
    return FamilyStudy(runs, laws, cost, optimum, growths, stages, problems)


def _several_sizes(runs: Runs) -> bool:
    """Whether a law in data alone would be about sizes too."""
    return len(np.unique(runs.inputs.get("parameters", ()))) > 1


def _named_outliers(choice: Choice, runs: Runs) -> list[str]:
    """The outliers of a law by their lines in the table."""
    fit = choice.fit
    lines = []
    for place in fit.scatter.outliers:
        same = runs.error == fit.error[place]
        for name, column in fit.inputs.items():
            same &= runs.inputs[name] == column[place]
        lines += [line for line, is_it in zip(runs.lines, same, strict=True) if is_it]
    if not lines:
        return []
    return [
        f"{len(lines)} runs lie beyond 4 median absolute deviations of the law and hardly count: "
        f"line{'s' * (len(lines) > 1)} {', '.join(sorted(lines, key=int))}"
    ]


def _rivals(
    one: FamilyStudy, other: FamilyStudy, budgets: Sequence[float], replicates: int
) -> Rivals:
    names = one.runs.family, other.runs.family
    laws = pairs = together = None
    if IN_COMPUTE in one.laws and IN_COMPUTE in other.laws:
        laws = _comparison(one, other, budgets)
    left, right = ((family.runs.inputs["compute"], family.runs.error) for family in (one, other))
    with suppress(DataError):  # fronts that hardly overlap
        pairs = pair_fronts(left, right, replicates)
    with suppress(DataError):  # too few runs, or nothing in common
        together = fit_together(left, right, replicates)
    best = []
    for family in (one, other):
        runs = family.runs
        if runs.noise is None:
            return Rivals(*names, laws, together, pairs, ())
        places = front(runs.inputs["compute"], runs.error, None)
        best.append(
            (runs.inputs["compute"][places], runs.error[places], (runs.noise * runs.error)[places])
        )
    return Rivals(*names, laws, together, pairs, pair_runs(*best))


def _comparison(one: FamilyStudy, other: FamilyStudy, budgets: Sequence[float]) -> Comparison:
    """At the geometric middle of the computes that both have runs at, and at the budgets."""
    columns = [family.runs.inputs["compute"] for family in (one, other)]
    low, high = max(c.min() for c in columns), min(c.max() for c in columns)
    places = np.array([np.sqrt(low * high), *budgets])
    return compare(one.laws[IN_COMPUTE].fit, other.laws[IN_COMPUTE].fit, places)
