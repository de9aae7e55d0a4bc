"""Asks a law for the largest of the runs it is fitted to, fitted without them, at several cuts.
Part of a fit: how much wider its intervals must be than what the residuals alone ask for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from caft.scaling_law.misfit import MOST_RUNS, weigh
from caft.scaling_law.solve import Problem

Array = NDArray[np.float64]

CUTS = (0.4, 0.55, 0.7, 0.85)  # of the range of the logarithm of size
PRIOR_CUTS = 2.0  # that would have come out as expected, so that one cut alone decides little
SPARE = 4  # runs beside one for each parameter, below a cut
FEWEST_BEYOND = 2


def widening(problem: Problem, best: Array, places: Array, groups: NDArray[np.intp]) -> float:
    """By what factor runs beyond a cut lie further from the law than expected, 1 at least.

    Args:
        best: (1, P), where to start from, beside the form's own starts.
        places: (n, F) coordinates of the runs, the first one their size.
        groups: (n,) from 0.
    """
    squares = [float(np.mean(ratio**2)) for ratio in _held_out(problem, best, places, groups)]
    if not squares:
        return 1.0
    mean = (PRIOR_CUTS + sum(squares)) / (PRIOR_CUTS + len(squares))
    return float(np.sqrt(max(mean, 1.0)))


def _held_out(
    problem: Problem, best: Array, places: Array, groups: NDArray[np.intp]
) -> Iterator[Array]:
    """For each cut, the runs' distance from the law over what is expected of it."""
    size, done = places[:, 0], 0
    some = np.linspace(0, len(size) - 1, min(len(size), MOST_RUNS)).astype(int)
    for share in CUTS:
        cut = size.min() + share * np.ptp(size)
        below, beyond = some[size[some] < cut], some[size[some] >= cut]
        enough = len(below) >= best.shape[1] + SPARE and len(beyond) >= FEWEST_BEYOND
        if not enough or len(below) == done:
            continue
        done = len(below)
        inner = _part(problem, below)
        theta, _ = inner.best(inner.targets[None], np.concatenate([best, inner.starts()]))
        span = inner.derivatives(theta[0])
        residuals = inner.targets - inner.model(theta)[0]
        told = weigh(residuals, span, places[below], groups[below], inner.scale)
        outer = _part(problem, beyond)
        found = outer.targets - outer.model(theta)[0]
        expected = told.expected(span, places[beyond], outer.derivatives(theta[0]))
        yield found / (expected * outer.scale)


def _part(problem: Problem, runs: NDArray[np.intp]) -> Problem:
    inputs = {key: column[runs] for key, column in problem.inputs.items()}
    return replace(problem, inputs=inputs, targets=problem.targets[runs], scale=problem.scale[runs])
