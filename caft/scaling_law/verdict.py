"""The study in one line, for a reader who reads no more.
Between the study and its report."""

from __future__ import annotations

import numpy as np

from caft.scaling_law.choice import Choice
from caft.scaling_law.compare import Pairs
from caft.scaling_law.figures import number
from caft.scaling_law.study import IN_COMPUTE, FamilyStudy, Study

SHARE = 95  # of held-out runs that are predicted within what is said, in per cent


def verdict(study: Study) -> str:
    """What a study says, in one line."""
    parts = [_of_family(family) for family in study.families]
    parts += [
        _of_pairs(rivals.one, rivals.other, rivals.pairs)
        for rivals in study.comparisons
        if rivals.pairs is not None
    ]
    return f"{study.target}: {'; '.join(parts)}"


def _of_family(family: FamilyStudy) -> str:
    name = family.runs.family
    if not family.laws:
        return f"{name}: no law ({family.problems[-1]})"
    choice = family.laws.get(IN_COMPUTE) or next(iter(family.laws.values()))
    return f"{name}: {choice.chosen} {_quality(choice)}"


def _quality(choice: Choice) -> str:
    size = choice.fit.form.places(choice.fit.inputs)[:, 0]
    decades = float(np.ptp(size) / np.log(10))
    held_out = choice.held_out.get(choice.chosen)
    over = f"over {decades:.1f} decades"
    if held_out is None:
        return f"is fitted {over}, and too few runs to hold any out"
    miss = np.abs(held_out.prediction.value / held_out.error - 1)
    within = 100 * float(np.percentile(miss, SHARE, method="higher"))
    said = f"predicts a run of {held_out.reach.max():.3g} times the compute within {within:.2g}%"
    return f"{'is doubtful' if held_out.problem else 'holds'} {over}, {said}"


def _of_pairs(one: str, other: str, pairs: Pairs) -> str:
    band = pairs.at(pairs.compute)
    better = [
        f"{name} is better from {number(where.min())} to {number(where.max())}"
        for name, told in ((one, band.high < 1), (other, band.low > 1))
        if len(where := pairs.compute[told])
    ]
    crossing = pairs.crossing
    if crossing is not None and pairs.compute.min() < crossing.value[0] < pairs.compute.max():
        better.append(f"they cross at {number(crossing.value[0])}")
    return ", ".join(better) if better else f"{one} and {other} are not told apart"
