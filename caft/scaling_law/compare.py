"""Two model families at equal compute: how far apart, where they cross, and what compute makes up.
After the fits of both; the study of a sweep reports it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from caft.errors import DataError
from caft.scaling_law.fit import REPLICATES, fit_form
from caft.scaling_law.fitted import Band, Fit
from caft.scaling_law.form import ComputeForm
from caft.scaling_law.front import pareto_front
from caft.scaling_law.inputs import check_numbers

Array = NDArray[np.float64]

STEPS = 200  # of log compute, among which a crossing is looked for
EQUAL = 1.25  # runs whose computes differ by less than this factor are compared as they are


@dataclass(frozen=True)
class Comparison:
    """One family against another at m computes, with 95% intervals."""

    compute: Array  # (m,)
    ratio: Band  # error of the one over error of the other
    multiple: Band  # of its compute that the other needs to do as well; inf: it never does
    beyond: NDArray[np.bool_]  # (m,) outside the computes that both have runs at

    @property
    def apart(self) -> NDArray[np.bool_]:
        """(m,) whether the interval of `ratio` leaves out 1: the families differ."""
        return (self.ratio.high < 1) | (self.ratio.low > 1)


@dataclass(frozen=True)
class Pairs:
    """k pairs of fronts at equal compute, and the law of their ratio, which both families' common
    misfit is not in."""

    compute: Array  # (k,)
    ratio: Array  # (k,) error of the one over that of the other
    fit: Fit  # ratio = A C^-a

    @property
    def crossing(self) -> Band | None:
        """The compute (1,) at which the families are equal; None where neither is told to be the
        better at an end of the pairs, or the law of the ratio is not 1 between them.

        The interval ends in 0 or inf where it is not told that the other one becomes the better.
        """
        places = np.geomspace(self.compute.min(), self.compute.max(), STEPS)
        band, (scale, exponent) = self.at(places), self.fit.values
        apart = (band.high < 1) | (band.low > 1)
        if not (apart[0] or apart[-1]) or (band.value[0] - 1) * (band.value[-1] - 1) >= 0:
            return None
        ratios = self.fit.replicate_errors({"compute": places})
        before = (ratios < 1) if band.value[0] < 1 else (ratios > 1)
        edges = np.array([0.0, *places[1:], np.inf])
        # By how many places lie before it, since chance may cross to and fro.
        crossings = edges[before.sum(axis=1)]
        return Band.of(np.array([scale ** (1 / exponent)]), crossings[:, None])

    def at(self, compute: ArrayLike) -> Band:
        """The ratio of expected errors at compute (m,)."""
        inputs = {"compute": np.atleast_1d(np.asarray(compute, float))}
        return Band.of(self.fit.law(inputs), self.fit.replicate_errors(inputs))


@dataclass(frozen=True)
class RunPair:
    """Two runs of nearly equal compute, one of each family, on a test of known size."""

    compute: tuple[float, float]
    error: tuple[float, float]
    z: float  # difference of their errors over its standard deviation


def compare(one: Fit, other: Fit, compute: ArrayLike) -> Comparison:
    """The family of fit `one` against that of `other` at `compute` (m,), in one unit for both.

    The multiple is above 1 where `one` is the better: with its compute times the multiple, the
    other has its error.

    Raises:
        DataError: a fit that is no law in compute, or a compute that is not a positive number.
    """
    form = other.form
    if not isinstance(one.form, ComputeForm) or not isinstance(form, ComputeForm):
        raise DataError(
            f"{one.form.name} and {form.name}: families are compared by laws in compute alone; "
            "fit `power` or `saturating` to both"
        )
    places = check_numbers({"compute": np.atleast_1d(np.asarray(compute, float))})["compute"]
    inputs = {"compute": places}
    # Two fits of as many runs draw the same chance; shuffled, theirs are independent.
    order = np.random.default_rng(0).permutation(len(other.replicates))
    count = min(len(order), len(one.replicates))
    errors = one.replicate_errors(inputs)[:count]
    others = other.replicate_errors(inputs)[order[:count]]
    needed = form.compute(other.values[None], one.law(inputs))[0]
    needs = form.compute(other.replicates[order[:count]], errors)
    ends = [(fit.inputs["compute"].min(), fit.inputs["compute"].max()) for fit in (one, other)]
    low, high = max(end[0] for end in ends), min(end[1] for end in ends)
    return Comparison(
        places,
        Band.of(one.law(inputs) / other.law(inputs), errors / others),
        Band.of(needed / places, needs / places),
        (places < low) | (places > high),
    )


def pair_fronts(
    one: tuple[Array, Array], other: tuple[Array, Array], replicates: int = REPLICATES
) -> Pairs:
    """The fronts of two families at the computes of the one that has more runs there, the other's
    error being interpolated between its runs.

    Args:
        one, other: compute (n,) and error (n,) of all runs of a family.

    Raises:
        DataError: fewer than three pairs, since the fronts hardly overlap.
    """
    fronts = []
    for compute, error in (one, other):
        best = pareto_front(compute, error)
        fronts.append((np.log(compute[best]), np.log(error[best])))
    low, high = max(x[0] for x, _ in fronts), min(x[-1] for x, _ in fronts)
    shared = [(x >= low) & (x <= high) for x, _ in fronts]
    dense = int(shared[1].sum() > shared[0].sum())
    x, y = (column[shared[dense]] for column in fronts[dense])
    logs = (y - np.interp(x, *fronts[1 - dense])) * (1 - 2 * dense)
    compute, ratio = np.exp(x), np.exp(logs)
    return Pairs(compute, ratio, fit_form("power", {"compute": compute}, ratio, replicates))


def pair_runs(one: tuple[Array, Array, Array], other: tuple[Array, Array, Array]) -> list[RunPair]:
    """Each run of the one beside the run of the other that is nearest in compute.

    Args:
        one, other: compute (n,), error (n,) and its standard deviation (n,) of a family's front.
    """
    found = []
    for compute, error, deviation in zip(*one, strict=True):
        distance = np.abs(np.log(other[0] / compute))
        nearest = int(distance.argmin())
        if distance[nearest] > np.log(EQUAL):
            continue
        there, its, spread = (float(column[nearest]) for column in other)
        z = (float(error) - its) / float(np.hypot(deviation, spread))
        found.append(RunPair((float(compute), there), (float(error), its), z))
    return found
