"""One fit as a minimisation, and robust non-linear least squares for thousands of them at once.
Under every fit: the best parameters of a form for many sets of targets, in one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import f as f_distribution

from caft.scaling_law.form import Form, below_guessing, without_guessing
from caft.scaling_law.misfit import EXACT

Array = NDArray[np.float64]

CONFIDENCE = 0.95
INTERVAL = (50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE))  # in per cent
AT_BOUND = 1e-6  # of the width of the box

NOT_ABOVE_ZERO = "not told apart from zero"
FLAT = "the runs fit as well with any value up to the bound of the search"

MAX_ITERATIONS = 100
RELATIVE_STEP = 1e-6  # of the numerical derivative
CONVERGED = 1e-8  # relative fall of the objective
FIRST_DAMPING, LAST_DAMPING = 1e-3, 1e10


@dataclass(frozen=True)
class Problem:
    """A form on the inputs of n runs, in the fit's units."""

    form: Form
    inputs: Mapping[str, Array]
    targets: Array  # log error (n,)
    scale: Array  # (n,) chance of a run over that of most: what a residual is divided by
    threshold: float  # of Huber's loss: a residual beyond it counts linearly
    asymptote: float = np.inf  # error of guessing that the law bends towards

    def starts(self) -> Array:
        """Where to start from, (S, P), the best first."""
        error = without_guessing(np.exp(self.targets), self.asymptote)
        return self.form.starts(self.inputs, error)

    def model(self, theta: Array) -> Array:
        """Log error (R, n) for `theta` (R, P)."""
        error = self.form.error(self.form.values(theta), self.inputs)
        return np.log(below_guessing(error, self.asymptote))

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
            lambda theta: self.model(theta) / self.scale,
            np.repeat(targets / self.scale, tries, axis=0),
            np.tile(starts, (count, 1)),
            low,
            high,
            self.threshold,
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
            replicates: (R, P), the same for repetitions of the experiment; R may be 0.
        """
        low, high = self.form.box
        ends = np.percentile(replicates, INTERVAL, axis=0) if len(replicates) else None
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
                near = AT_BOUND * (high[p] - low[p])
                reached = ends is not None and abs(ends[end, p] - bound) < near
                if reached or objective[0] <= allowed:
                    flaw = NOT_ABOVE_ZERO if parameter.vanishes and end == 0 and not flaw else FLAT
            found.append(flaw)
        return found


def huber(residuals: Array, delta: float) -> Array:
    """Huber's loss, summed over the last axis: square up to `delta`, linear beyond."""
    size = np.abs(residuals)
    return np.where(size <= delta, size**2 / 2, delta * (size - delta / 2)).sum(axis=-1)


def minimise(
    model: Callable[[Array], Array],
    targets: Array,
    starts: Array,
    low: Array,
    high: Array,
    delta: float,
    free: NDArray[np.bool_] | None = None,
) -> tuple[Array, Array]:
    """Fit R problems that share their inputs: parameters (R, P) and objectives (R,).

    Levenberg-Marquardt steps on iteratively reweighted residuals, projected on the box. Each
    problem has its own damping, and leaves the batch when it has converged.

    Args:
        model: parameters (r, P) -> predictions (r, n), for any r.
        targets: (R, n).
        starts: (R, P).
        low, high: (P,), the box.
        delta: of Huber's loss, in the unit of the targets.
        free: (R, P), False where a parameter keeps its start.
    """
    theta = np.clip(starts, low, high)
    movable = np.ones(theta.shape, dtype=bool) if free is None else free
    residuals = model(theta) - targets  # (R, n)
    values = huber(residuals, delta)
    damping = np.full(len(theta), FIRST_DAMPING)
    open_ = np.arange(len(theta))
    for _ in range(MAX_ITERATIONS):
        here, r = theta[open_], residuals[open_]
        jacobian = derivatives(model, here, r + targets[open_])  # (r, n, P)
        weights = delta / np.maximum(np.abs(r), delta)
        weighted = jacobian * weights[..., None]
        gradient = np.einsum("rnp,rn->rp", weighted, r)
        hessian = weighted.transpose(0, 2, 1) @ jacobian
        held = ((here <= low) & (gradient > 0)) | ((here >= high) & (gradient < 0))
        held |= ~movable[open_]
        step = _step(hessian, gradient, held, damping[open_])
        tried = np.clip(here + step, low, high)
        tried_residuals = model(tried) - targets[open_]
        tried_values = huber(tried_residuals, delta)
        better = tried_values < values[open_]
        fall = values[open_] - tried_values
        done = better & (fall <= CONVERGED * values[open_])
        won = open_[better]
        theta[won], residuals[won] = tried[better], tried_residuals[better]
        values[won] = tried_values[better]
        damping[open_] *= np.where(better, 1 / 5, 4)
        open_ = open_[~(done | (damping[open_] > LAST_DAMPING))]
        if not len(open_):
            break
    return theta, values


def _step(hessian: Array, gradient: Array, held: NDArray[np.bool_], damping: Array) -> Array:
    """The damped Newton step of each problem, (r, P); held parameters stay."""
    kept = ~held
    hessian = hessian * (kept[:, :, None] & kept[:, None, :])
    diagonal = np.einsum("rpp->rp", hessian)
    # The floor keeps a parameter that nothing depends on from making the system singular.
    floor = 1e-12 * np.maximum(diagonal.max(axis=1, keepdims=True), 1e-300)
    damped = np.maximum(diagonal, floor) * damping[:, None] + floor
    index = np.arange(hessian.shape[1])
    hessian[:, index, index] += np.where(held, 1.0, damped)
    step = np.linalg.solve(hessian, np.where(held, 0.0, -gradient)[..., None])[..., 0]
    return np.asarray(step, dtype=np.float64)


def derivatives(model: Callable[[Array], Array], theta: Array, centre: Array) -> Array:
    """Of `model` by theta (r, P) where it gives `centre` (r, n): forward differences, (r, n, P)."""
    problems, parameters = theta.shape
    moved = (theta[:, None] + RELATIVE_STEP * np.eye(parameters)).reshape(-1, parameters)
    found = model(moved).reshape(problems, parameters, -1)
    return ((found - centre[:, None]) / RELATIVE_STEP).transpose(0, 2, 1)
