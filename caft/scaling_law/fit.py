"""Fits a form to runs and says how sure it is: values, intervals, what the runs do not tell.
The middle of the flow: runs and a front come in; choice, optimum, comparison, report use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from caft.errors import DataError
from caft.scaling_law.backtest import widening
from caft.scaling_law.fitted import Band, Estimate, Fit, Scatter
from caft.scaling_law.form import ComputeForm, Form
from caft.scaling_law.forms import FORMS
from caft.scaling_law.front import front
from caft.scaling_law.inputs import (
    check_enough,
    check_numbers,
    check_runs,
    design_problems,
    form_inputs,
)
from caft.scaling_law.misfit import EXACT, LEAST_FREEDOM_FOR_MAD, Draws, deviation, outliers, weigh
from caft.scaling_law.noise import estimate_noise, runs_test, scatter_problems
from caft.scaling_law.solve import Problem

Array = NDArray[np.float64]

REPLICATES = 500
REPLICATE_STARTS = 1  # beside the fit itself: a replicate may lie in another valley
MOST_REFITTED = 250  # runs of a replicate
MUCH_WIDER = 1.5  # factor of the intervals that is worth a word
LEAST_FREEDOM = 3  # for an interval
RATE_FROM = 0.5  # errors of 1 at most may be rates if one is above it
FAR = 5.0  # difference of log likelihoods: odds of about 150 to 1
FIRST_THRESHOLD = 0.05  # of Huber's loss, in log error; also where few points tell no other
HUBER = 1.345  # threshold over the residuals' deviation: 95% efficient for normal ones
LEAST_THRESHOLD = 1e-3
THRESHOLD_STEPS = 3


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
    envelope_bins: int | None = 5,
    replicates: int = REPLICATES,
    groups: ArrayLike | None = None,
    noise: ArrayLike | None = None,
) -> Fit:
    """A law in compute, `power` or `saturating`, on the lower envelope, or on the Pareto front if
    `envelope_bins` is None. As `fit_power_law`, and `noise` as in `fit_form`."""
    law = _form(form)
    if not isinstance(law, ComputeForm):
        raise DataError(f"{form}: an envelope is of laws in compute alone, use fit_form for it")
    if envelope_bins is not None and envelope_bins < 0:
        raise DataError(f"envelope_bins: {envelope_bins}; give 0 for all runs, or a number of bins")
    arrays = check_numbers({"compute": compute, "error": error})
    check_enough(law, arrays)
    labels = check_runs({"compute": arrays["compute"]}, arrays["error"], groups)
    best = front(arrays["compute"], arrays["error"], envelope_bins)
    chosen = {"compute": arrays["compute"][best]}
    known = None if noise is None else np.asarray(noise, float)[best]
    return _fit(law, chosen, arrays["error"][best], replicates, labels[best], noise=known)


def fit_form(
    name: str,
    inputs: Mapping[str, ArrayLike],
    error: ArrayLike,
    replicates: int = REPLICATES,
    groups: ArrayLike | None = None,
    seed: int = 0,
    noise: ArrayLike | None = None,
    ceiling: float | None = None,
) -> Fit:
    """Fit a form to n runs: the minimum of the summed Huber loss of log residuals, whose threshold
    follows their median absolute deviation.

    Intervals come from `replicates` repetitions of the experiment (a parametric bootstrap): errors
    are drawn about the fitted law, with chance of runs, chance of groups and smooth misfit of the
    form as likely as the residuals make them, and fitted again.

    Args:
        name: `power`, `saturating`, `size_samples` or `repetition`.
        inputs: (n,) each, what the form depends on: `compute`, or `parameters`, `samples`,
            `unique_samples`.
        error: (n,) as in `fit_power_law`; likewise `groups`.
        seed: of the repetitions.
        noise: (n,) standard deviation of log error by the size of the test, where it is known;
            runs with more of it than most count less.
        ceiling: the error g of guessing, where errors are rates; infinite for a loss. No prediction
            is above it, and a law e0 in size and samples is read as 1 / e^2 = 1 / e0^2 + 1 / g^2
            where the runs lie nearer to it so.
            Without it, 1 is taken of such a law where no error is above 1 and that fits far
            better, and `problems` say so.

    Raises:
        DataError: fewer points than parameters + 1, one point twice, an input that is missing,
            not a positive number, or the same in all runs.
    """
    return fit_law(_form(name), inputs, error, replicates, groups, seed, noise, ceiling)


def fit_law(
    form: Form,
    inputs: Mapping[str, ArrayLike],
    error: ArrayLike,
    replicates: int = REPLICATES,
    groups: ArrayLike | None = None,
    seed: int = 0,
    noise: ArrayLike | None = None,
    ceiling: float | None = None,
) -> Fit:
    """As `fit_form`, of any form."""
    arrays = check_numbers({**form_inputs(form, inputs), "error": error})
    errors = arrays.pop("error")
    labels = check_runs(arrays, errors, groups)
    return _fit(form, arrays, errors, replicates, labels, seed, noise, ceiling)


def _fit(
    form: Form,
    arrays: Mapping[str, Array],
    errors: Array,
    replicates: int,
    labels: NDArray[np.intp],
    seed: int = 0,
    noise: ArrayLike | None = None,
    ceiling: float | None = None,
) -> Fit:
    check_enough(form, arrays)
    # In an order of their own, so that the caller's does not change what is drawn for whom.
    order = np.lexsort([labels, errors, *arrays.values()])
    units = {key: float(np.exp(np.log(column).mean())) for key, column in arrays.items()}
    if "unique_samples" in units:
        units["unique_samples"] = units["samples"]
    units["error"] = float(np.exp(np.log(errors).mean()))
    scaled = {key: column[order] / units[key] for key, column in arrays.items()}
    known = None if noise is None else check_numbers({"error": errors, "noise": noise})["noise"]
    scale = np.ones(len(order))
    if known is not None:
        scale = np.maximum(known[order] / np.median(known), 1.0)
    targets = np.log(errors[order] / units["error"])

    problem = Problem(form, scaled, targets, scale, FIRST_THRESHOLD)
    rates, ceiling, (problem, best, objective) = _with_ceiling(problem, ceiling, units["error"])
    parameters, freedom = len(form.parameters), len(order) - len(form.parameters)
    fitted = problem.model(best)[0]
    residuals = targets - fitted
    groups = np.unique(labels[order], return_inverse=True)[1]
    places = form.places({key: column[order] for key, column in arrays.items()})
    deviations = weigh(residuals, problem.derivatives(best[0]), places, groups, scale)
    problems = list(design_problems(form, arrays))
    if rates:
        problems.append(
            "errors are taken for rates whose error of guessing is 1, since the law fits them "
            "better so; name it (ceiling), or infinity for what is no rate"
        )
    if freedom < LEAST_FREEDOM:
        theta, draws = np.empty((0, parameters)), None
        problems.append(
            f"no interval: {len(order)} points leave {freedom} degree{'s' * (freedom != 1)} of "
            f"freedom to {parameters} parameters, {LEAST_FREEDOM} at least are needed"
        )
    else:
        factor = widening(problem, best, places, groups)
        draws = deviations.draw(replicates, np.random.default_rng(seed), factor)
        if factor > MUCH_WIDER:
            problems.append(
                f"fitted without its larger runs, the law misses them by {factor:.1f} times what "
                "its residuals let expect: intervals are wider by that"
            )
        theta = _refit(problem, best, draws)
    if groups.max() + 1 < len(groups) and not deviations.groups_told:
        problems.append("these points do not tell what chance groups share: it is in no interval")
    odd = outliers(residuals / scale, parameters)
    scatter = Scatter(
        deviation(residuals / scale, parameters),
        *estimate_noise(places, targets, known),
        runs_test(residuals[np.argsort(places[:, 0], kind="stable")]),
        tuple(sorted(order[odd].tolist())),
    )
    problems += scatter_problems(scatter)

    values = form.to_units(form.values(best), units)[0]
    repeated = form.to_units(form.values(theta), units)
    band = Band.of(values, repeated)
    flaws = problem.flaws(best[0], objective, theta)
    estimates = tuple(
        Estimate(p.name, p.meaning, float(value), float(least), float(most), flaw)
        for p, value, least, most, flaw in zip(
            form.parameters, values, band.low, band.high, flaws, strict=True
        )
    )
    return Fit(
        form,
        arrays,
        errors,
        estimates,
        values,
        repeated,
        deviations.spread(),
        scatter,
        problem.threshold,
        draws,
        ceiling,
        problem.asymptote * units["error"],
        tuple(problems),
    )


def _with_ceiling(
    problem: Problem, ceiling: float | None, unit: float
) -> tuple[bool, float, tuple[Problem, Array, float]]:
    """Whether errors are taken for rates unasked, the error of guessing, and the robust fit."""
    fitted = _robust(problem)
    highest = unit * float(np.exp(problem.targets.max()))
    asked, needed = ceiling is not None, 0.0 if ceiling is not None else FAR
    if ceiling is None:
        ceiling = 1.0 if RATE_FROM < highest <= 1 else np.inf
    asymptote = problem.form.asymptote(ceiling)
    if not np.isinf(asymptote):
        bent = _robust(replace(problem, asymptote=asymptote / unit))
        spreads = [np.abs(p.targets - p.model(b)[0]).mean() + EXACT for p, b, _ in (fitted, bent)]
        if len(problem.targets) * float(np.log(spreads[0] / spreads[1])) > needed:
            return not asked, ceiling, bent
    return False, ceiling if asked else np.inf, fitted


def _robust(problem: Problem) -> tuple[Problem, Array, float]:
    """The problem with the threshold that its residuals ask for, the best parameters (1, P) and
    the objective there."""
    starts = problem.starts()
    best, objective = problem.best(problem.targets[None], starts)
    parameters = best.shape[1]
    if len(problem.targets) - parameters < LEAST_FREEDOM_FOR_MAD:
        return problem, best, float(objective[0])
    for _ in range(THRESHOLD_STEPS):
        residuals = (problem.targets - problem.model(best)[0]) / problem.scale
        threshold = max(HUBER * deviation(residuals, parameters), LEAST_THRESHOLD)
        problem = replace(problem, threshold=threshold)
        best, objective = problem.best(problem.targets[None], np.concatenate([best, starts]))
    return problem, best, float(objective[0])


def _refit(problem: Problem, best: Array, draws: Draws) -> Array:
    """Parameters (R, P) of repetitions of the experiment."""
    fitted = problem.model(best)[0]
    points = len(fitted)
    # Of very many runs some stand for all, each with as much less chance as it stands for others.
    some = np.linspace(0, points - 1, min(points, MOST_REFITTED)).astype(int)
    drawn = draws.common[:, some] + draws.single[:, some] * np.sqrt(len(some) / points)
    thin = replace(
        problem,
        inputs={key: column[some] for key, column in problem.inputs.items()},
        targets=problem.targets[some],
        scale=problem.scale[some],
    )
    near = np.concatenate([best, thin.starts()[:REPLICATE_STARTS]])
    return thin.best(fitted[some] + drawn, near)[0]


def _form(name: str) -> Form:
    if name not in FORMS:
        raise DataError(f"{name}: no such form; there are {', '.join(FORMS)}")
    return FORMS[name]
