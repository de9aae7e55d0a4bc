"""Fits a form to runs and says how sure it is: values, intervals, what the runs do not tell.
The middle of the flow: runs and an envelope come in; choice, optimum, comparison, report use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import f as f_distribution

from caft.errors import DataError
from caft.scaling_law.envelope import MIN_FRONTIER_POINTS, lower_envelope
from caft.scaling_law.forms import FORMS, Form
from caft.scaling_law.solve import minimise

Array = NDArray[np.float64]

HUBER_DELTA = 0.05  # in log error: a residual of more than 5% counts linearly
REPLICATES = 1000
CONFIDENCE = 0.95
REPLICATE_STARTS = 2  # beside the fit itself: a replicate may lie in another valley
DECADES_FOR_A_LAW = 1.5
INTERVAL = (50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE))  # in per cent


@dataclass(frozen=True)
class Estimate:
    """A parameter with its 95% interval; `problem` says why its value must not be used."""

    name: str
    meaning: str
    value: float
    low: float
    high: float
    problem: str | None = None

    @property
    def identified(self) -> bool:
        return self.problem is None

    @property
    def at_most(self) -> float | None:
        """What stays known of a parameter that could be zero as well: its upper end."""
        return self.high if self.problem == NOT_ABOVE_ZERO else None


NOT_ABOVE_ZERO = "not told apart from zero"
FLAT = "the runs fit as well with any value up to the bound of the search"


@dataclass(frozen=True)
class Prediction:
    """The error of new runs, (n,): the law's value and the 95% interval of a single run."""

    error: Array
    low: Array
    high: Array


@dataclass(frozen=True)
class Fit:
    """A form fitted to n runs.

    `replicates` (R, P) are the parameters of as many repetitions of the experiment, in the
    reader's units like `values` (P,); whatever is derived from a fit gets its interval from them.
    """

    form: Form
    inputs: Mapping[str, Array]  # (n,) each
    error: Array  # (n,)
    estimates: tuple[Estimate, ...]
    values: Array
    replicates: Array
    spread: float  # standard deviation of log error about the law
    replicate_spreads: Array  # (R,), as likely given the residuals
    problems: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Estimate:
        return next(estimate for estimate in self.estimates if estimate.name == name)

    @property
    def scale(self) -> float:
        """The factor of a power law: error = scale x compute ** exponent."""
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
        return self.form.error(self.values[None], _arrays(self.form, inputs))[0]

    def law_interval(self, inputs: Mapping[str, ArrayLike]) -> tuple[Array, Array]:
        """The 95% interval of the law itself, (n,) each."""
        low, high = np.percentile(self._replicate_laws(inputs), INTERVAL, axis=0)
        return low, high

    def predict(self, inputs: Mapping[str, ArrayLike]) -> Prediction:
        """The error of one new run for each of n inputs, with what chance adds to a run."""
        laws = self._replicate_laws(inputs)
        noise = np.random.default_rng(0).normal(size=laws.shape)
        low, high = np.percentile(
            laws * np.exp(self.replicate_spreads[:, None] * noise), INTERVAL, axis=0
        )
        return Prediction(self.law(inputs), low, high)

    def _replicate_laws(self, inputs: Mapping[str, ArrayLike]) -> Array:
        return self.form.error(self.replicates, _arrays(self.form, inputs))


def fit_power_law(
    compute: ArrayLike, error: ArrayLike, envelope_bins: int = 5, replicates: int = REPLICATES
) -> Fit:
    """error = scale x compute ** exponent on the lower envelope of n runs.

    Args:
        compute: (n,), in any unit.
        error: (n,), 1 - accuracy or 1 - recall, or a loss of one batch size.
        envelope_bins: equal intervals of log compute that give their best run each; 0: all runs.

    Raises:
        DataError: fewer than 3 points on the envelope, or values that are not positive numbers.
    """
    return fit_envelope("power", compute, error, envelope_bins, replicates)


def fit_envelope(
    form: str,
    compute: ArrayLike,
    error: ArrayLike,
    envelope_bins: int = 5,
    replicates: int = REPLICATES,
) -> Fit:
    """A law in compute, `power` or `saturating`, on the lower envelope. As `fit_power_law`."""
    inputs, errors = _checked(FORMS[form], {"compute": compute}, error)
    best = lower_envelope(inputs["compute"], errors, envelope_bins)
    return fit_form(form, {"compute": inputs["compute"][best]}, errors[best], replicates)


def fit_form(
    name: str,
    inputs: Mapping[str, ArrayLike],
    error: ArrayLike,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Fit:
    """Fit a form to n independent points: the minimum of the summed Huber loss of log residuals.

    Intervals come from `replicates` repetitions of the experiment: errors are drawn about the
    fitted law and fitted again, each with a noise level that is as likely as the residuals make it
    (spread^2 (n - P) / chi^2 of n - P degrees of freedom). For a law linear in its parameters
    that is Student's t exactly; resampling the runs instead is too sure of itself with few.

    Raises:
        DataError: fewer points than parameters + 1, an input that is missing, not a positive
            number, or the same in all runs.
    """
    form = FORMS[name]
    arrays, errors = _checked(form, inputs, error)
    units = {key: float(np.exp(np.log(column).mean())) for key, column in arrays.items()}
    if "unique_samples" in units:
        units["unique_samples"] = units["samples"]
    units["error"] = float(np.exp(np.log(errors).mean()))
    scaled = {key: column / units[key] for key, column in arrays.items()}
    targets = np.log(errors / units["error"])
    problem = _Problem(form, scaled, targets)

    best, least = problem.best(targets[None], problem.starts)
    fitted = problem.model(best)[0]
    freedom = len(targets) - len(form.parameters)
    spread = float(np.sqrt(((targets - fitted) ** 2).sum() / freedom))
    rng = np.random.default_rng(seed)
    spreads = spread * np.sqrt(freedom / rng.chisquare(freedom, replicates))
    noise = rng.normal(size=(replicates, len(targets)))
    near = np.concatenate([best, problem.starts[:REPLICATE_STARTS]])
    theta, _ = problem.best(fitted + spreads[:, None] * noise, near)

    values = form.to_units(form.values(best), units)[0]
    repeated = form.to_units(form.values(theta), units)
    low, high = np.percentile(repeated, INTERVAL, axis=0)
    flaws = problem.flaws(best[0], float(least[0]), np.percentile(theta, INTERVAL, axis=0))
    estimates = tuple(
        Estimate(p.name, p.meaning, *map(float, numbers), flaw)
        for p, *numbers, flaw in zip(form.parameters, values, low, high, flaws, strict=True)
    )
    problems = _design_problems(form, arrays)
    return Fit(form, arrays, errors, estimates, values, repeated, spread, spreads, problems)


@dataclass(frozen=True)
class _Problem:
    """A form on the inputs of n runs, in the fit's units."""

    form: Form
    inputs: Mapping[str, Array]
    targets: Array  # log error (n,)

    @property
    def starts(self) -> Array:
        return self.form.starts(self.inputs, np.exp(self.targets))

    def model(self, theta: Array) -> Array:
        return np.log(self.form.error(self.form.values(theta), self.inputs))

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

    def flaws(self, best: Array, least: float, interval: Array) -> list[str | None]:
        """Why each parameter is not identified, None where it is: its interval reaches a bound of
        the search, or its profile stays flat up to one (F test on the objective)."""
        low, high = self.form.box
        freedom = len(self.targets) - len(best)
        allowed = least * (1 + f_distribution.ppf(CONFIDENCE, 1, freedom) / freedom)
        starts = np.concatenate([best[None], self.starts])
        found: list[str | None] = []
        for p, parameter in enumerate(self.form.parameters):
            flaw = None
            for end, bound in ((1, high[p]), (0, low[p])):
                free = np.arange(len(best)) != p
                at_bound = np.where(free, starts, bound)
                _, objective = self.best(self.targets[None], at_bound, free)
                reached = abs(interval[end, p] - bound) < 1e-6 * (high[p] - low[p])
                if reached or objective[0] <= allowed:
                    flaw = NOT_ABOVE_ZERO if parameter.vanishes and end == 0 and not flaw else FLAT
            found.append(flaw)
        return found


def _checked(
    form: Form, inputs: Mapping[str, ArrayLike], error: ArrayLike
) -> tuple[dict[str, Array], Array]:
    arrays = _arrays(form, inputs)
    errors = np.asarray(error, dtype=np.float64)
    for name, column in (*arrays.items(), ("error", errors)):
        if column.shape != errors.shape or column.ndim != 1:
            raise DataError(f"{name}: {column.shape} values for {errors.shape} errors; give (n,)")
        bad = np.flatnonzero(~(np.isfinite(column) & (column > 0)))
        if len(bad):
            raise DataError(
                f"{name}: run {bad[0]} has {column[bad[0]]:g}, a law needs positive numbers; "
                f"leave out the {len(bad)} runs without a measurement"
            )
    needed = len(form.parameters) + 1
    if len(errors) < needed:
        raise DataError(
            f"error: {len(errors)} points, but {form.formula} has {needed - 1} parameters and "
            f"needs {needed} at least; add runs, or envelope bins if a law in compute"
        )
    for name, column in arrays.items():
        if np.ptp(np.log(column)) < 1e-9 and name != "unique_samples":
            raise DataError(f"{name}: {column[0]:g} in all runs; a law in it needs several values")
    return arrays, errors


def _arrays(form: Form, inputs: Mapping[str, ArrayLike]) -> dict[str, Array]:
    missing = [name for name in form.inputs if name not in inputs]
    if missing:
        raise DataError(f"{missing[0]}: not given, but {form.formula} depends on it")
    return {name: np.asarray(inputs[name], dtype=np.float64) for name in form.inputs}


def _design_problems(form: Form, arrays: Mapping[str, Array]) -> tuple[str, ...]:
    """What these runs cannot tell, whatever their errors."""
    if form.inputs != ("compute",):
        return ()
    found = []
    compute = arrays["compute"]
    if len(compute) < MIN_FRONTIER_POINTS:
        found.append(
            f"{len(compute)} points on the frontier; fewer than {MIN_FRONTIER_POINTS} "
            "leave the law to single runs"
        )
    decades = float(np.log10(compute.max() / compute.min()))
    if decades < DECADES_FOR_A_LAW:
        found.append(f"{decades:.1f} decades of compute; {DECADES_FOR_A_LAW} at least are wanted")
    return tuple(found)
