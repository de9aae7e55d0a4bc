"""Fits a form to runs and says how sure it is: values, intervals, what the runs do not tell.
The middle of the flow: runs and an envelope come in; choice, optimum, comparison, report use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from caft.errors import DataError, UnidentifiedError
from caft.scaling_law.forms import FORMS, ComputeForm, Form
from caft.scaling_law.inputs import (
    check_enough,
    check_numbers,
    check_runs,
    design_problems,
    form_inputs,
    new_inputs,
)
from caft.scaling_law.noise import estimate_noise
from caft.scaling_law.solve import INTERVAL, NOT_ABOVE_ZERO, Problem

Array = NDArray[np.float64]

REPLICATES = 1000
REPLICATE_STARTS = 2  # beside the fit itself: a replicate may lie in another valley


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
    """What a fit derives for n places: values with their 95% intervals, (n,) each."""

    value: Array
    low: Array
    high: Array

    @classmethod
    def of(cls, value: Array, replicates: Array) -> Band:
        """From `value` (n,) and what each repetition of the experiment gives for it, (R, n)."""
        # No interpolation, so that ends may be infinite.
        low, high = np.percentile(replicates, INTERVAL, axis=0, method="nearest")
        return cls(value, low, high)


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
    spread: float  # standard deviation of log error about the law, of a run of a new group
    replicate_spreads: Array  # (R,), as likely given the residuals
    problems: tuple[str, ...] = ()  # what the design cannot tell

    def __getitem__(self, name: str) -> Estimate:
        """The parameter that the formula calls `name`."""
        named = {estimate.name: estimate for estimate in self.estimates}
        if name not in named:
            raise DataError(f"{name}: no parameter of {self.form.formula}; it has {list(named)}")
        return named[name]

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
        return self.form.error(self.values[None], new_inputs(self.form, inputs))[0]

    def law_band(self, inputs: Mapping[str, ArrayLike]) -> Band:
        """The law's error for inputs (n,), with the interval of the law itself."""
        return Band.of(self.law(inputs), self.replicate_laws(inputs))

    def predict(self, inputs: Mapping[str, ArrayLike]) -> Band:
        """The error of one new run for each of n inputs; the interval is that of a single run."""
        laws = self.replicate_laws(inputs)
        noise = np.random.default_rng(0).normal(size=laws.shape)
        return Band.of(self.law(inputs), laws * np.exp(self.replicate_spreads[:, None] * noise))

    def replicate_laws(self, inputs: Mapping[str, ArrayLike]) -> Array:
        """The error (R, n) that each repetition of the experiment gives to inputs (n,)."""
        return self.form.error(self.replicates, new_inputs(self.form, inputs))


def fit_power_law(
    compute: ArrayLike,
    error: ArrayLike,
    envelope_bins: int = 5,
    replicates: int = REPLICATES,
    groups: ArrayLike | None = None,
) -> Fit:
    """error = scale x compute ** exponent on the lower envelope of n runs.

    Args:
        compute: (n,), in any unit.
        error: (n,), 1 - accuracy or 1 - recall, or a loss of one batch size.
        envelope_bins: equal intervals of log compute that give their best run each; 0: all runs.
        replicates: repetitions of the experiment that intervals come from.
        groups: (n,) label of what shares chance: the seed, or the trunk of several cool-downs.

    Raises:
        DataError: fewer than 3 points on the envelope, values that are not positive numbers, or
            one point twice.
    """
    return fit_envelope("power", compute, error, envelope_bins, replicates, groups)


def fit_envelope(
    form: str,
    compute: ArrayLike,
    error: ArrayLike,
    envelope_bins: int = 5,
    replicates: int = REPLICATES,
    groups: ArrayLike | None = None,
) -> Fit:
    """A law in compute, `power` or `saturating`, on the lower envelope. As `fit_power_law`."""
    law = _form(form)
    if not isinstance(law, ComputeForm):
        raise DataError(f"{form}: an envelope is of laws in compute alone, use fit_form for it")
    if envelope_bins < 0:
        raise DataError(f"envelope_bins: {envelope_bins}; give 0 for all runs, or a number of bins")
    arrays = check_numbers({"compute": compute, "error": error})
    check_enough(law, arrays)
    labels = check_runs({"compute": arrays["compute"]}, arrays["error"], groups)
    best = lower_envelope(arrays["compute"], arrays["error"], envelope_bins)
    chosen = {"compute": arrays["compute"][best]}
    return _fit(law, chosen, arrays["error"][best], replicates, labels[best])


def lower_envelope(
    compute: NDArray[np.float64], error: NDArray[np.float64], bins: int
) -> NDArray[np.intp]:
    """Positions of the run with the least error in each of `bins` equal intervals of log compute,
    from the least compute to the most; empty intervals give none. With 0 bins, every run in the
    order of its compute."""
    order = np.argsort(compute, kind="stable")
    if bins == 0:
        return order
    place = np.log(compute[order])
    edges = np.linspace(place[0], place[-1], bins + 1)
    interval = np.clip(np.searchsorted(edges, place, side="right") - 1, 0, bins - 1)
    best = [
        members[np.argmin(error[members])]
        for number in range(bins)
        if len(members := order[interval == number])
    ]
    return np.array(best, dtype=np.intp)


def fit_form(
    name: str,
    inputs: Mapping[str, ArrayLike],
    error: ArrayLike,
    replicates: int = REPLICATES,
    groups: ArrayLike | None = None,
    seed: int = 0,
) -> Fit:
    """Fit a form to n runs: the minimum of the summed Huber loss of log residuals.

    Intervals come from `replicates` repetitions of the experiment (a parametric bootstrap over
    groups and runs): errors are drawn about the fitted law, with noise as likely as the residuals
    make it, and fitted again. Resampling the few runs of an envelope instead holds the truth less
    often (docs/scaling_laws.md has both measured).

    Args:
        name: `power`, `saturating`, `size_samples` or `repetition`.
        inputs: (n,) each, what the form depends on: `compute`, or `parameters`, `samples`,
            `unique_samples`.
        error: (n,) as in `fit_power_law`; likewise `groups`.
        seed: of the repetitions.

    Raises:
        DataError: fewer points than parameters + 1, one point twice, an input that is missing,
            not a positive number, or the same in all runs.
    """
    form = _form(name)
    arrays = check_numbers({**form_inputs(form, inputs), "error": error})
    errors = arrays.pop("error")
    labels = check_runs(arrays, errors, groups)
    return _fit(form, arrays, errors, replicates, labels, seed)


def _fit(
    form: Form,
    arrays: Mapping[str, Array],
    errors: Array,
    replicates: int,
    labels: NDArray[np.intp],
    seed: int = 0,
) -> Fit:
    check_enough(form, arrays)
    # In an order of their own, so that the caller's does not change what is drawn for whom.
    order = np.lexsort([labels, errors, *arrays.values()])
    units = {key: float(np.exp(np.log(column).mean())) for key, column in arrays.items()}
    if "unique_samples" in units:
        units["unique_samples"] = units["samples"]
    units["error"] = float(np.exp(np.log(errors).mean()))
    scaled = {key: column[order] / units[key] for key, column in arrays.items()}
    problem = Problem(form, scaled, np.log(errors[order] / units["error"]))

    starts = problem.starts()
    best, objective = problem.best(problem.targets[None], starts)
    fitted = problem.model(best)[0]
    groups = np.unique(labels[order], return_inverse=True)[1]
    noise = estimate_noise(
        problem.targets - fitted, problem.derivatives(best[0]), groups, len(form.parameters)
    )
    drawn, spreads = noise.draw(replicates, np.random.default_rng(seed))
    near = np.concatenate([best, starts[:REPLICATE_STARTS]])
    theta, _ = problem.best(fitted + drawn, near)

    values = form.to_units(form.values(best), units)[0]
    repeated = form.to_units(form.values(theta), units)
    low, high = np.percentile(repeated, INTERVAL, axis=0)
    flaws = problem.flaws(best[0], float(objective[0]), theta)
    estimates = tuple(
        Estimate(p.name, p.meaning, float(value), float(least), float(most), flaw)
        for p, value, least, most, flaw in zip(
            form.parameters, values, low, high, flaws, strict=True
        )
    )
    problems = design_problems(form, arrays)
    if groups.max() + 1 < len(groups) and not noise.weight:
        problems += ("these points do not tell what chance groups share: it is in no interval",)
    return Fit(form, arrays, errors, estimates, values, repeated, noise.spread, spreads, problems)


def _form(name: str) -> Form:
    if name not in FORMS:
        raise DataError(f"{name}: no such form; there are {', '.join(FORMS)}")
    return FORMS[name]
