"""What a fit gives: the law, its parameters with intervals, predictions, and what it misses.
Between fit.py, which makes it, and choice, comparison, optimum and report, which use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from caft.errors import DataError, UnidentifiedError
from caft.scaling_law.form import LARGE, Form, below_guessing
from caft.scaling_law.inputs import new_inputs
from caft.scaling_law.misfit import Draws
from caft.scaling_law.solve import INTERVAL, NOT_ABOVE_ZERO

Array = NDArray[np.float64]

FARTHEST = 1e300


@dataclass(frozen=True)
class Estimate:
    """A parameter with its 95% interval; `problem` says why it is not identified, None if it is."""

    name: str
    meaning: str
    best: float  # whatever the runs tell of it; `value` is the one to use
    low: float
    high: float
    problem: str | None = None

    @property
    def identified(self) -> bool:
        return self.problem is None

    @property
    def value(self) -> float:
        """The parameter.

        Raises:
            UnidentifiedError: the runs do not determine it.
        """
        if self.problem:
            known = "" if self.at_most is None else f", at most {self.at_most:.3g}"
            raise UnidentifiedError(
                f"{self.name} ({self.meaning}): {self.problem}{known}; add runs over a wider "
                "range, or take a form without it"
            )
        return self.best

    @property
    def at_most(self) -> float | None:
        """What stays known of a parameter that could be zero as well: its upper end."""
        return self.high if self.problem == NOT_ABOVE_ZERO else None


@dataclass(frozen=True)
class Band:
    """What a fit derives for n places: values with their 95% intervals, (n,) each; the ends are
    infinite where there is no interval."""

    value: Array
    low: Array
    high: Array

    @classmethod
    def of(cls, value: Array, replicates: Array) -> Band:
        """From `value` (n,) and what each repetition of the experiment gives for it, (R, n)."""
        if not len(replicates):
            return cls(value, np.full_like(value, -np.inf), np.full_like(value, np.inf))
        # No interpolation, so that ends may be infinite.
        low, high = np.percentile(replicates, INTERVAL, axis=0, method="nearest")
        return cls(value, low, high)


@dataclass(frozen=True)
class Scatter:
    """What lies between runs and their law, as standard deviations of log error."""

    left: float  # of all residuals but outliers
    noise: float | None  # chance of a run; None: unknown
    source: str  # of `noise`: repeated runs, the test's size, or unknown
    runs_test: float  # probability of as few changes of sign along compute, if by chance
    outliers: tuple[int, ...]  # runs beyond 4 median absolute deviations, as they were given

    @property
    def misfit(self) -> float | None:
        """What the law misses beyond chance; None where chance is unknown."""
        return None if self.noise is None else float(np.sqrt(max(self.left**2 - self.noise**2, 0)))


@dataclass(frozen=True)
class Fit:
    """A form fitted to n runs.

    `replicates` (R, P) are the parameters of as many repetitions of the experiment, in the
    reader's units like `values` (P,); whatever is derived from a fit gets its interval from them.
    There are none, and no interval, where fewer than 3 degrees of freedom are left.
    """

    form: Form
    inputs: Mapping[str, Array]  # (n,) each
    error: Array  # (n,)
    estimates: tuple[Estimate, ...]
    values: Array
    replicates: Array
    spread: float  # standard deviation by chance of the log error of a run of a new group
    scatter: Scatter
    threshold: float  # of Huber's loss
    draws: Draws | None  # deviations of the runs in those repetitions; None without any
    ceiling: float = np.inf  # error of guessing: no law says more
    asymptote: float = np.inf  # the same, where the law bends towards it
    problems: tuple[str, ...] = ()  # what the runs cannot tell

    def __getitem__(self, name: str) -> Estimate:
        """The parameter that the formula calls `name`."""
        named = {estimate.name: estimate for estimate in self.estimates}
        if name not in named:
            raise DataError(f"{name}: no parameter of {self.form.formula}; it has {list(named)}")
        return named[name]

    @property
    def formula(self) -> str:
        """The law as it is fitted, guessing included."""
        if np.isinf(self.asymptote):
            return self.form.formula
        return f"e, where 1 / e^2 = 1 / ({self.form.formula})^2 + 1 / {self.asymptote:.4g}^2"

    @property
    def scale(self) -> float:
        """The factor A of a law in compute; of a power law, error = scale x compute ** exponent."""
        return self["A"].value

    @property
    def exponent(self) -> float:
        """The exponent of a law in compute, negative where compute helps."""
        return -self["a"].value

    @property
    def residuals(self) -> Array:
        """Measured over fitted error, as logarithms, (n,)."""
        return np.log(self.error / self.law(self.inputs))

    def law(self, inputs: Mapping[str, ArrayLike]) -> Array:
        """The law's error for inputs (n,)."""
        law = self.form.error(self.values[None], new_inputs(self.form, inputs))[0]
        return self._bounded(law)

    def law_band(self, inputs: Mapping[str, ArrayLike]) -> Band:
        """The law's error for inputs (n,), with the interval of the law itself."""
        return Band.of(self.law(inputs), self.replicate_laws(inputs))

    def predict(self, inputs: Mapping[str, ArrayLike]) -> Band:
        """The error of one new run for each of n inputs; the interval is that of a single run.

        It allows for the law's uncertainty, for chance, and for what this form misses, which
        grows with the distance from the runs.
        """
        return Band.of(self.law(inputs), self.replicate_runs(inputs))

    def replicate_runs(self, inputs: Mapping[str, ArrayLike]) -> Array:
        """The error (R, n) of one new run in each repetition, which `predict` summarises."""
        expected = self.replicate_errors(inputs)
        if self.draws is None:
            return expected
        noise = np.random.default_rng(1).normal(size=expected.shape)
        chance = _factor(self.draws.spreads[:, None] * noise)
        return np.minimum(expected * chance, self.ceiling)

    def replicate_laws(self, inputs: Mapping[str, ArrayLike]) -> Array:
        """The error (R, n) that each repetition of the experiment gives to inputs (n,)."""
        laws = self.form.error(self.replicates, new_inputs(self.form, inputs))
        return self._bounded(laws)

    def _bounded(self, error: Array) -> Array:
        return np.minimum(below_guessing(error, self.asymptote), self.ceiling)

    def replicate_errors(self, inputs: Mapping[str, ArrayLike]) -> Array:
        """The same with what the law misses there: the expected error of runs, (R, n)."""
        laws = self.replicate_laws(inputs)
        if self.draws is None:
            return laws
        # What is unlimited is as far from the runs as anything, and has to have a distance.
        finite = {
            name: np.minimum(column, FARTHEST)
            for name, column in new_inputs(self.form, inputs).items()
        }
        # A repetition is the runs less what they deviate by, so what it misses is taken away too.
        return laws * _factor(-self.draws.misfit(self.form.places(finite)))


def _factor(logs: Array) -> Array:
    """Exponentials; what three degrees of freedom may draw stays finite."""
    return np.exp(np.clip(logs, -LARGE, LARGE))
