"""Robust non-linear least squares for thousands of small problems at once.
Under every fit: the best parameters of a form for many sets of targets, in one batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MAX_ITERATIONS = 150
RELATIVE_STEP = 1e-6  # of the numerical derivative
CONVERGED = 1e-10  # relative fall of the objective
FIRST_DAMPING, LAST_DAMPING = 1e-3, 1e10


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
    columns = []
    for p in range(theta.shape[1]):
        moved = theta.copy()
        moved[:, p] += RELATIVE_STEP
        columns.append((model(moved) - centre) / RELATIVE_STEP)
    return np.stack(columns, axis=-1)
