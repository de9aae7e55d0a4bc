"""Best sizes read off runs of equal compute, and how they grow with it; beside what a law says.
After the runs; the study of a sweep reports it where several budgets have several sizes each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from caft.errors import DataError
from caft.scaling_law.fit import fit_form
from caft.scaling_law.fitted import Band, Fit
from caft.scaling_law.front import pareto_front
from caft.scaling_law.inputs import check_numbers
from caft.scaling_law.optimum import Cost, compute_optimal, growth

Array = NDArray[np.float64]

EQUAL = 1.1  # computes that differ by less than this factor are one budget
FEWEST_SIZES = 4  # of a budget: a parabola and a degree of freedom
FEWEST_BUDGETS = 3


@dataclass(frozen=True)
class Profile:
    """The runs of one budget, and the parabola of log error over log size through them."""

    compute: float
    parameters: Array  # (n,)
    error: Array  # (n,)
    coefficients: Array  # (3,) of log error, by powers of log(parameters) - `centre`, from 2 to 0
    centre: float
    best: float  # parameters of least error

    def curve(self, parameters: Array) -> Array:
        """The parabola's error (m,) at sizes (m,)."""
        return np.exp(np.polyval(self.coefficients, np.log(parameters) - self.centre))


@dataclass(frozen=True)
class Growth:
    """How the best size N* = scale x compute ** exponent grows, by one approach."""

    approach: str
    exponent: Band  # (1,)
    compute: Array  # (k,) budgets or runs that it is read off
    parameters: Array  # (k,) best size at each


@dataclass(frozen=True)
class IsoFLOP:
    """Best sizes by up to three approaches (Hoffmann et al. 2022, section 3)."""

    profiles: Sequence[Profile]
    growths: Sequence[Growth]

    @property
    def problem(self) -> str | None:
        """Which approaches contradict each other: their intervals have nothing in common."""
        for n, one in enumerate(self.growths):
            for other in self.growths[n + 1 :]:
                low = max(one.exponent.low[0], other.exponent.low[0])
                if low > min(one.exponent.high[0], other.exponent.high[0]):
                    return (
                        f"{one.approach} and {other.approach} do not agree on how the best size "
                        f"grows with compute: exponents of {one.exponent.value[0]:.2f} and "
                        f"{other.exponent.value[0]:.2f}, intervals apart"
                    )
        return None


def isoflop(
    compute: ArrayLike,
    parameters: ArrayLike,
    error: ArrayLike,
    law: Fit | None = None,
    cost: Cost | None = None,
) -> IsoFLOP:
    """Parabolas through the runs of each budget, and the growth of their best sizes with compute:
    of the parabolas, of the runs on the front, and of a law.

    Args:
        compute, parameters, error: (n,) of all runs of a family.
        law: in parameters and samples.
        cost: of its runs; with it, the law's best sizes are at the same budgets.

    Raises:
        DataError: fewer than three budgets whose best size lies among the sizes tried.
    """
    runs = check_numbers({"compute": compute, "parameters": parameters, "error": error})
    profiles = [
        profile
        for budget in _budgets(runs["compute"])
        if (profile := _profile(*(column[budget] for column in runs.values()))) is not None
    ]
    if len(profiles) < FEWEST_BUDGETS:
        raise DataError(
            f"{len(profiles)} budgets have a best size among at least {FEWEST_SIZES} sizes, "
            f"{FEWEST_BUDGETS} are needed"
        )
    budgets = np.array([profile.compute for profile in profiles])
    best = np.array([profile.best for profile in profiles])
    on_front = pareto_front(runs["compute"], runs["error"])
    growths = [
        _growth("isoFLOP parabolas", budgets, best),
        _growth("the front", runs["compute"][on_front], runs["parameters"][on_front]),
    ]
    if law is not None:
        places = budgets if cost is not None else np.array([])
        sizes = places if cost is None else compute_optimal(law, places, cost).parameters.value
        growths.append(Growth("the law", growth(law)[0], places, sizes))
    return IsoFLOP(profiles, [found for found in growths if found is not None])


def _growth(approach: str, compute: Array, parameters: Array) -> Growth | None:
    """None where one size is the best of nearly all: no power law."""
    try:
        fit = fit_form("power", {"compute": compute}, parameters)
    except DataError:
        return None
    found = fit["a"]
    ends = (-found.high, -found.low) if len(fit.replicates) else (-np.inf, np.inf)
    return Growth(
        approach, Band(*(np.array([end]) for end in (-found.best, *ends))), compute, parameters
    )


def _budgets(compute: Array) -> list[NDArray[np.intp]]:
    """Positions of the runs of each budget, from the least."""
    order = np.argsort(compute, kind="stable")
    found: list[list[int]] = []
    for place in order:
        if not found or compute[place] > EQUAL * compute[found[-1][0]]:
            found.append([])
        found[-1].append(int(place))
    return [np.array(places) for places in found]


def _profile(compute: Array, parameters: Array, error: Array) -> Profile | None:
    """None of too few sizes, or where the least error is not among them."""
    if len(np.unique(parameters)) < FEWEST_SIZES:
        return None
    logs = np.log(parameters)
    centre = float(logs.mean())
    coefficients = np.polyfit(logs - centre, np.log(error), 2)
    if coefficients[0] <= 0:
        return None
    best = centre - coefficients[1] / (2 * coefficients[0])
    if not logs.min() <= best <= logs.max():
        return None
    budget = float(np.exp(np.log(compute).mean()))
    return Profile(budget, parameters, error, coefficients, centre, float(np.exp(best)))
