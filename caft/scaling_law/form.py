"""What a functional form is, and what forms share: parameters, units, guessing, starts.
Under forms.py, which has the laws themselves, and under the solver."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

Array = NDArray[np.float64]
Inputs = Mapping[str, Array]  # compute, parameters, samples, unique_samples; (n,) each

KEPT_STARTS = 4
AT_CEILING = 0.999  # of the error of guessing; an error nearer to it tells no more of the law
NEGLIGIBLE, LARGE = 1e-9, 300.0


@dataclass(frozen=True)
class Parameter:
    """One parameter of a form. All are positive; `log` ones are searched as logarithms."""

    name: str
    meaning: str
    bounds: tuple[float, float]  # in the fit's units
    log: bool = True
    vanishes: bool = False  # the lower bound stands for zero


class Form(ABC):
    """A law: error as a function of a run's inputs.

    `values` are parameters as the formula names them, (R, P); `theta` are the same as the solver
    moves them: logarithms of what is positive, and log(value + bound) of what may vanish.
    """

    name: str
    formula: str
    inputs: tuple[str, ...]
    parameters: tuple[Parameter, ...]

    @abstractmethod
    def error(self, values: Array, inputs: Inputs) -> Array:
        """Errors (R, n), all in the units that `values` are in."""

    @abstractmethod
    def starts(self, inputs: Inputs, error: Array) -> Array:
        """`theta` to start from, (S, P), the best first."""

    @abstractmethod
    def to_units(self, values: Array, units: Mapping[str, float]) -> Array:
        """Values fitted to inputs over `units`, and error over its unit, as they are without."""

    @abstractmethod
    def places(self, inputs: Inputs) -> Array:
        """Coordinates (n, F) in e-folds over which misfit is smooth; the first is size of a run."""

    def asymptote(self, ceiling: float) -> float:
        """The error of guessing that the law bends towards, of runs that guess at error `ceiling`:
        none in compute alone, where it bends fronts of real runs the wrong way."""
        return np.inf

    @cached_property
    def box(self) -> tuple[Array, Array]:
        """Bounds of `theta`, (P,) each."""
        bounds = np.array([np.log(p.bounds) if p.log else p.bounds for p in self.parameters])
        return bounds[:, 0], bounds[:, 1]

    def values(self, theta: Array) -> Array:
        zero, logs = self._kinds
        return np.where(logs, np.exp(np.where(logs, theta, 0.0)) - zero, theta)

    def theta(self, values: Array) -> Array:
        """The inverse of `values`, inside the box."""
        zero, logs = self._kinds
        raised = values + zero
        logarithms = np.log(np.where(logs, np.maximum(raised, NEGLIGIBLE), 1.0))
        return np.clip(np.where(logs, logarithms, values), *self.box)

    @cached_property
    def _kinds(self) -> tuple[Array, NDArray[np.bool_]]:
        """What stands for zero (0 of what cannot vanish), and what is searched as logarithms."""
        zero = np.array([p.bounds[0] if p.vanishes else 0.0 for p in self.parameters])
        return zero, np.array([p.log for p in self.parameters])


class ComputeForm(Form):
    """A law in compute alone, fitted to the lower envelope; it can be read backwards."""

    inputs = ("compute",)

    def places(self, inputs: Inputs) -> Array:
        return np.log(inputs["compute"])[:, None]

    @abstractmethod
    def compute(self, values: Array, error: Array) -> Array:
        """Compute (R, n) that `values` (R, P) need for errors (R, n); inf for one out of reach."""


def below_guessing(error: Array, ceiling: float) -> Array:
    """Errors e of runs whose law without guessing is `error` e0: 1 / e^2 = 1 / e0^2 + 1 / g^2.

    The `ceiling` g is the error of guessing. Far below g, e is e0; no e is above g.
    """
    return error if np.isinf(ceiling) else error / np.sqrt(1 + (error / ceiling) ** 2)


def without_guessing(error: Array, ceiling: float) -> Array:
    """The inverse of `below_guessing`; an error of the ceiling or above counts as just below it."""
    share = np.minimum(error / ceiling, AT_CEILING)
    return error if np.isinf(ceiling) else share * ceiling / np.sqrt(1 - share**2)


def columns_of(theta: Array) -> tuple[Array, ...]:
    """Parameters as (R, 1) each."""
    return tuple(theta[:, p, None] for p in range(theta.shape[1]))


def decayed(size: Array, exponent: Array) -> Array:
    """size ** -exponent; through one logarithm per size much quicker than by `**`."""
    return np.exp(-exponent * np.log(size))


def inverse(share: Array, exponent: Array) -> Array:
    """C where C ** -exponent = share; inf where more compute does not lower the error."""
    reachable = (share > 0) & (exponent > 0)
    power = -np.log(np.where(reachable, share, 1.0)) / np.where(reachable, exponent, 1.0)
    return np.where(reachable, np.exp(np.minimum(power, LARGE)), np.inf)


def project(terms: Array, error: Array) -> tuple[Array, float]:
    """Non-negative coefficients (k,) of terms (n, k) with the least relative misfit, and that."""
    return nnls(terms / error[:, None], np.ones_like(error))


def best_starts(
    form: Form, found: list[tuple[float, list[float]]], count: int = KEPT_STARTS
) -> Array:
    """The values with the least misfit, as `theta` (S, P)."""
    found = sorted(found, key=lambda entry: entry[0])
    return form.theta(np.array([values for _, values in found[:count]]))
