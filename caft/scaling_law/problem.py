"""One fit as a minimisation: a form, the inputs of its runs, and what those cannot tell.
Between fit.py, which speaks of runs, and solve.py, which knows numbers only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import f as f_distribution

from caft.scaling_law.forms import Form
from caft.scaling_law.solve import derivatives, minimise

Array = NDArray[np.float64]

CONFIDENCE = 0.95
INTERVAL = (50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE))  # in per cent
HUBER_DELTA = 0.05  # in log error: a residual of more than 5% counts linearly
EXACT = 1e-6  # log error below which runs without noise differ by rounding
AT_BOUND = 1e-6  # of the width of the box

NOT_ABOVE_ZERO = "not told apart from zero"
FLAT = "the runs fit as well with any value up to the bound of the search"


@dataclass(frozen=True)
class Problem:
    """A form on the inputs of n runs, in the fit's units."""

    form: Form
    inputs: Mapping[str, Array]
    targets: Array  # log error (n,)

    def starts(self) -> Array:
        """Where to start from, (S, P), the best first."""
        return self.form.starts(self.inputs, np.exp(self.targets))

    def model(self, theta: Array) -> Array:
        """Log error (R, n) for `theta` (R, P)."""
        return np.log(self.form.error(self.form.values(theta), self.inputs))

    def derivatives(self, theta: Array) -> Array:
        """Of log error by one `theta` (P,), (n, P)."""
        return derivatives(self.model, theta[None], self.model(theta[None]))[0]

    def best(
        self, targets: Array, starts: Array, free: NDArray[np.bool_] | None = None
    ) -> tuple[Array, Array]:
        """From each of S starts, the best kept: parameters (R, P), objectives (R,)."""
        count, tries = len(targets), len(starts)
        low, high = self.form.box
        theta, values = minimise(
            self.model,
            np.repeat(targets, tries, axis=0),
            np.tile(starts, (count, 1)),
            low,
            high,
            HUBER_DELTA,
            None if free is None else np.tile(free, (count * tries, 1)),
        )
        values = values.reshape(count, tries)
        chosen = values.argmin(axis=1)
        picked = theta.reshape(count, tries, -1)[np.arange(count), chosen]
        return picked, values[np.arange(count), chosen]

    def flaws(self, best: Array, least: float, replicates: Array) -> list[str | None]:
        """Why each parameter is not identified, None where it is.

        It is not where its interval reaches a bound of the search, or where the runs fit as well
        with the parameter held there (F test on the objective).

        Args:
            best: (P,), with objective `least`.
            replicates: (R, P), the same for repetitions of the experiment.
        """
        low, high = self.form.box
        interval = np.percentile(replicates, INTERVAL, axis=0)
        points = len(self.targets)
        freedom = points - len(best)
        allowed = least * (1 + f_distribution.ppf(CONFIDENCE, 1, freedom) / freedom)
        allowed += points * EXACT**2
        starts = np.concatenate([best[None], self.starts()])
        found: list[str | None] = []
        for p, parameter in enumerate(self.form.parameters):
            flaw = None
            for end, bound in ((1, high[p]), (0, low[p])):
                free = np.arange(len(best)) != p
                _, objective = self.best(self.targets[None], np.where(free, starts, bound), free)
                reached = abs(interval[end, p] - bound) < AT_BOUND * (high[p] - low[p])
                if reached or objective[0] <= allowed:
                    flaw = NOT_ABOVE_ZERO if parameter.vanishes and end == 0 and not flaw else FLAT
            found.append(flaw)
        return found
