"""How much of what lies between runs and a law is chance, and whether the rest has a shape.
After a fit; what chance does not explain is the law's misfit."""

from __future__ import annotations

from math import erfc, sqrt

import numpy as np
from numpy.typing import NDArray

from caft.scaling_law.fitted import Scatter

Array = NDArray[np.float64]

SURE = 0.01  # probability below which residuals are said to have a shape
FEWEST_RUNS = 12  # for that test
LEAST_MISFIT = 0.002  # log error; less is of no use to anybody


def estimate_noise(places: Array, logs: Array, known: Array | None) -> tuple[float | None, str]:
    """Standard deviation by chance of the log error of most runs, and where that is known from.

    Repeated runs tell it best, since they differ in nothing but chance.

    Args:
        places: (n, F) coordinates of the runs.
        logs: (n,) log errors.
        known: (n,) by the size of the test.
    """
    _, cell = np.unique(np.round(places, 9), axis=0, return_inverse=True)
    cell = cell.reshape(-1)
    counts = np.bincount(cell)
    freedom = len(logs) - len(counts)
    if freedom > 0:
        means = np.bincount(cell, logs) / counts
        return float(sqrt(((logs - means[cell]) ** 2).sum() / freedom)), "repeated runs"
    if known is not None:
        return float(np.median(known)), "the size of the test"
    return None, "unknown"


def runs_test(residuals: Array) -> float:
    """Probability of no more changes of sign among residuals in this order, were they independent
    (Wald & Wolfowitz 1940, with the normal approximation)."""
    above = residuals > 0
    more, less = int(above.sum()), int((~above).sum())
    total = more + less
    if not (more and less) or total < FEWEST_RUNS:
        return 1.0
    runs = 1 + int((above[1:] != above[:-1]).sum())
    mean = 1 + 2 * more * less / total
    variance = (mean - 1) * (mean - 2) / (total - 1)
    return 0.5 * erfc((mean - runs - 0.5) / sqrt(2 * variance))


def scatter_problems(scatter: Scatter) -> list[str]:
    """What a reader must know of it."""
    found = []
    if scatter.runs_test < SURE and scatter.left > LEAST_MISFIT:
        found.append(
            f"residuals of {100 * scatter.left:.1f}% have a shape along compute (runs test, "
            f"p = {scatter.runs_test:.1g}): the law misses something, which widens its intervals"
        )
    return found
