"""Everything that a table of runs says of one error: laws, held-out runs, advice, comparisons.
Between the fits and the report; the sweep's fit and the command line call `study_runs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from caft.errors import DataError, UnidentifiedError
from caft.scaling_law.choice import Choice, choose_form
from caft.scaling_law.compare import Comparison, compare
from caft.scaling_law.fit import REPLICATES
from caft.scaling_law.forms import FORMS, ComputeForm
from caft.scaling_law.optimum import Cost, Optimum, compute_optimal, measure_cost
from caft.scaling_law.runs import Runs

BUDGET_STEP = 10.0  # times the largest compute measured, where no budget is asked for
IN_COMPUTE, IN_SIZE = "compute", "size"  # kinds of laws
KINDS = {
    IN_COMPUTE: [name for name, form in FORMS.items() if isinstance(form, ComputeForm)],
    IN_SIZE: [name for name, form in FORMS.items() if not isinstance(form, ComputeForm)],
}


@dataclass(frozen=True)
class FamilyStudy:
    """The laws of one family: one in compute, one in parameters and samples, where inputs allow."""

    runs: Runs
    laws: Mapping[str, Choice]  # by kind
    cost: Cost | None
    optimum: Optimum | None
    problems: tuple[str, ...]  # of the runs, and why there is no law or no optimum


@dataclass(frozen=True)
class Study:
    """What the runs say of one error."""

    target: str
    budgets: tuple[float, ...]  # compute that predictions and advice are for
    families: tuple[FamilyStudy, ...]
    comparisons: tuple[tuple[str, str, Comparison], ...]  # of each two families


def study_runs(
    target: str,
    families: Sequence[Runs],
    budgets: Sequence[float] = (),
    envelope_bins: int = 5,
    forms: Sequence[str] = tuple(FORMS),
    replicates: int = REPLICATES,
) -> Study:
    """Fit, choose, predict, advise and compare.

    Args:
        target: what the error is called.
        families: at least one.
        budgets: compute to predict, advise and compare at; ten times the largest, if none.
        envelope_bins: of laws in compute.
        forms: those to choose from.

    Raises:
        DataError: a form that is not there, or a family that none of them can be fitted to.
    """
    unknown = [name for name in forms if name not in FORMS]
    if unknown:
        raise DataError(f"forms: {unknown[0]} is none; there are {', '.join(FORMS)}")
    computes = [runs.inputs["compute"] for runs in families if "compute" in runs.inputs]
    if not budgets and computes:
        budgets = (BUDGET_STEP * float(max(column.max() for column in computes)),)
    studied = [_family(runs, budgets, envelope_bins, forms, replicates) for runs in families]
    pairs = [
        (one.runs.family, other.runs.family, _comparison(one, other, budgets))
        for one, other in combinations(studied, 2)
        if IN_COMPUTE in one.laws and IN_COMPUTE in other.laws
    ]
    return Study(target, tuple(budgets), tuple(studied), tuple(pairs))


def _family(
    runs: Runs,
    budgets: Sequence[float],
    envelope_bins: int,
    forms: Sequence[str],
    replicates: int,
) -> FamilyStudy:
    laws, reasons = {}, []
    for kind, names in KINDS.items():
        able = [n for n in names if n in forms and set(FORMS[n].inputs) <= set(runs.inputs)]
        if not able:
            continue
        try:
            laws[kind] = choose_form(
                able, runs.inputs, runs.error, runs.groups, envelope_bins, replicates
            )
        except DataError as error:
            reasons.append(f"no law in {kind}: {error}")
    if not laws:
        why = "; ".join(reasons) or f"none of {', '.join(forms)} goes with {list(runs.inputs)}"
        raise DataError(f"{runs.family}: {why}")
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
    return FamilyStudy(runs, laws, cost, optimum, (*runs.problems, *reasons))


def _comparison(one: FamilyStudy, other: FamilyStudy, budgets: Sequence[float]) -> Comparison:
    """At the geometric middle of the computes that both have runs at, and at the budgets."""
    columns = [family.runs.inputs["compute"] for family in (one, other)]
    low, high = max(c.min() for c in columns), min(c.max() for c in columns)
    places = np.array([np.sqrt(low * high), *budgets])
    return compare(one.laws[IN_COMPUTE].fit, other.laws[IN_COMPUTE].fit, places)
