"""The study in one line, for a reader who reads no more.
Between the study and its report."""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from caft.scaling_law.choice import Choice
from caft.scaling_law.figures import number
from caft.scaling_law.solve import CONFIDENCE
from caft.scaling_law.study import IN_COMPUTE, FamilyStudy, Rivals, Study

SHARE = 95  # of held-out runs that are predicted within what is said, in per cent


def verdict(study: Study) -> str:
    """What a study says, in one line."""
    parts = [_of_family(family) for family in study.families]
    parts += [_of_rivals(rivals) for rivals in study.comparisons]
    return f"{study.target}: {'; '.join(parts)}"


def _of_family(family: FamilyStudy) -> str:
    name = family.runs.family
    if not family.laws:
        reasons = [what for what in family.problems if what.startswith("no law")]
        return f"{name}: no law ({(reasons or family.problems)[-1]})"
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
    within = float(np.percentile(miss, SHARE, method="higher"))
    share = f"{100 * within:.2g}%" if within < 1 else f"a factor of {1 + within:.2g}"
    said = f"predicts a run of {held_out.reach.max():.3g} times the compute within {share}"
    if not held_out.with_interval:
        return f"is fitted {over}, {said}, and too few runs to test intervals"
    return f"{'is doubtful' if held_out.problem else 'holds'} {over}, {said}"


def _of_rivals(rivals: Rivals) -> str:
    """Where each of two families is better: by the law of their ratio, else by single runs."""
    one, other, pairs = rivals.one, rivals.other, rivals.pairs
    found = []
    if pairs is not None:
        band, crossing = pairs.at(pairs.compute), pairs.crossing
        found = [
            f"{name} is better from {number(where.min())} to {number(where.max())}"
            for name, told in ((one, band.high < 1), (other, band.low > 1))
            if len(where := pairs.compute[told])
        ]
        if crossing is not None and pairs.compute[0] < crossing.value[0] < pairs.compute[-1]:
            low, high = number(crossing.low[0]), number(crossing.high[0])
            found.append(f"they cross at {number(crossing.value[0])} ({low} to {high})")
    if not found:
        # One of many pairs may differ by chance alone: as much surer must each of them be.
        sure = norm.isf((1 - CONFIDENCE) / 2 / max(len(rivals.runs), 1))
        found = [
            f"{one if pair.z < 0 else other} is better at {number(pair.compute[0])} (errors of "
            f"{number(pair.error[0])} and {number(pair.error[1])}, z = {abs(pair.z):.1f})"
            for pair in rivals.runs
            if abs(pair.z) > sure
        ]
    return ", ".join(found) if found else f"{one} and {other} are not told apart"
