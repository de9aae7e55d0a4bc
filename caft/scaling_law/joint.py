"""Two families fitted as one, with the floor and the offset in common: what few runs do not tell of
each family apart, they may tell of both. Beside compare.py; the study of a sweep reports it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import f as f_distribution

from caft.errors import DataError
from caft.scaling_law.compare import Comparison
from caft.scaling_law.fit import LEAST_FREEDOM, REPLICATES, fit_law
from caft.scaling_law.fitted import Band, Fit
from caft.scaling_law.form import Array, Form, Inputs, best_starts, columns_of, decayed, project
from caft.scaling_law.forms import GRID, Saturating
from caft.scaling_law.front import pareto_front

ONE, OTHER = 1.0, 2.0  # values of the input `family`
APART = 1e3  # e-folds between families, over which no misfit is shared
SURE = 0.05  # probability below which families do not share a floor and an offset
OFFSETS = (0.0, 0.01, 0.1, 1.0)  # for starts

_A, _EXPONENT, _B, _E = Saturating.parameters


class Shared(Form):
    """error = A_f (C + B)^-a_f + E of a run of family f, 1 or 2."""

    name = "shared"
    formula = "A_f (C + B)^-a_f + E"
    inputs = ("compute", "family")
    parameters = (
        *(
            type(p)(f"{p.name}{n}", f"{p.meaning}, family {n}", p.bounds, p.log)
            for n in (1, 2)
            for p in (_A, _EXPONENT)
        ),
        _B,
        _E,
    )

    def places(self, inputs: Inputs) -> Array:
        return np.stack([np.log(inputs["compute"]), APART * _is_other(inputs)], axis=1)

    def error(self, values: Array, inputs: Inputs) -> Array:
        scale, a, other_scale, other_a, offset, floor = columns_of(values)
        is_other = _is_other(inputs)
        scale, a = np.where(is_other, other_scale, scale), np.where(is_other, other_a, a)
        return scale * decayed(inputs["compute"] + offset, a) + floor

    def starts(self, inputs: Inputs, error: Array) -> Array:
        found, is_other = [], _is_other(inputs)
        for a, other_a, offset in product(GRID[::2], GRID[::2], OFFSETS):
            size = inputs["compute"] + offset
            terms = [np.where(is_other, 0, size**-a), np.where(is_other, size**-other_a, 0)]
            (scale, other_scale, floor), misfit = project(
                np.stack([*terms, np.ones_like(error)], axis=1), error
            )
            found.append((misfit, [scale, a, other_scale, other_a, offset, floor]))
        return best_starts(self, found)

    def to_units(self, values: Array, units: Mapping[str, float]) -> Array:
        result = values.copy()
        for scale, exponent in ((0, 1), (2, 3)):
            result[:, scale] *= units["error"] * units["compute"] ** values[:, exponent]
        result[:, 4] *= units["compute"]
        result[:, 5] *= units["error"]
        return result


@dataclass(frozen=True)
class Together:
    """Two families under one law of `Shared`."""

    fit: Fit

    def compare(self, compute: ArrayLike) -> Comparison:
        """The one against the other at compute (m,), as `compare` does with a law for each."""
        places = np.atleast_1d(np.asarray(compute, float))
        laws, errors = zip(*(self._errors(places, family) for family in (ONE, OTHER)), strict=True)
        form, other = Saturating(), [2, 3, 4, 5]
        needed = form.compute(self.fit.values[None, other], laws[0])[0]
        needs = form.compute(self.fit.replicates[:, other], errors[0])
        family, measured = self.fit.inputs["family"], self.fit.inputs["compute"]
        low = max(measured[family == f].min() for f in (ONE, OTHER))
        high = min(measured[family == f].max() for f in (ONE, OTHER))
        return Comparison(
            places,
            Band.of(laws[0] / laws[1], errors[0] / errors[1]),
            Band.of(needed / places, needs / places),
            (places < low) | (places > high),
        )

    def _errors(self, compute: Array, family: float) -> tuple[Array, Array]:
        inputs = {"compute": compute, "family": np.full(len(compute), family)}
        return self.fit.law(inputs), self.fit.replicate_errors(inputs)


def fit_together(
    one: tuple[Array, Array], other: tuple[Array, Array], replicates: int = REPLICATES
) -> Together:
    """Fit the fronts of two families with one floor and one offset.

    Args:
        one, other: compute (n,) and error (n,) of all runs of a family.

    Raises:
        DataError: too few runs on the fronts for intervals, or families that do not share a floor
            and an offset: with laws of their own they fit better than chance allows (F test).
    """
    fronts = []
    for compute, error in (one, other):
        best = pareto_front(compute, error)
        fronts.append((compute[best], error[best]))
    compute, errors = (np.concatenate(column) for column in zip(*fronts, strict=True))
    family = np.repeat([ONE, OTHER], [len(column) for column, _ in fronts])
    form = Shared()
    freedom = len(errors) - len(form.parameters)
    if freedom < LEAST_FREEDOM or min(len(column) for column, _ in fronts) < LEAST_FREEDOM:
        raise DataError(f"{len(errors)} runs on both fronts are too few for a law of both")
    fit = fit_law(form, {"compute": compute, "family": family}, errors, replicates)
    _require_shared(fit, fronts)
    return Together(fit)


def _require_shared(fit: Fit, fronts: list[tuple[Array, Array]]) -> None:
    own = 2 * len(Saturating.parameters)
    free = len(fit.error) - own
    enough = all(len(error) > len(Saturating.parameters) for _, error in fronts)
    if free < 1 or not enough:
        return  # families apart cannot be fitted at all
    apart = [fit_law(Saturating(), {"compute": c}, e, replicates=1).residuals for c, e in fronts]
    square = sum(float((residuals**2).sum()) for residuals in apart)
    together, more = float((fit.residuals**2).sum()), own - len(fit.form.parameters)
    ratio = max(together - square, 0.0) / more / (square / free)
    if f_distribution.sf(ratio, more, free) < SURE:
        raise DataError("the families do not share a floor and an offset (F test)")


def _is_other(inputs: Inputs) -> np.ndarray:
    """(n,) In the fit's units families are 1 and 2 over a number between them."""
    return inputs["family"] > 1
