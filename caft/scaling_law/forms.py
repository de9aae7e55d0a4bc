"""The functional forms: what error depends on, and how.
Each is fitted in units of its inputs' geometric means, so that scale and exponent hardly trade."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

Array = NDArray[np.float64]
Inputs = Mapping[str, Array]  # compute, parameters, samples, unique_samples; (n,) each

EXPONENTS = (0.005, 3.0)
ANY_EXPONENT = (-10.0, 10.0)  # of a power law alone, which any two runs determine
SCALES = (1e-3, 1e2)  # of a term, as a share of the mean error at the mean inputs
FLOORS = (1e-3, 1.5)  # of E, as a share of the mean error
OFFSETS = (1e-4, 1e2)  # of B in (C + B), as a share of the mean compute
REPEATS = (0.05, 500.0)  # R*, in repeats
GRID = np.geomspace(0.05, 1.6, 14)  # of exponents, for starts
KEPT_STARTS = 4
NEGLIGIBLE, LARGE = 1e-9, 300.0
SEARCH_WIDTH, SEARCH_POINTS, SEARCHES = 7.0, 41, 5  # of log size: from a factor of 1000 to 2e-6


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

    @property
    def box(self) -> tuple[Array, Array]:
        """Bounds of `theta`, (P,) each."""
        bounds = np.array([np.log(p.bounds) if p.log else p.bounds for p in self.parameters])
        return bounds[:, 0], bounds[:, 1]

    def values(self, theta: Array) -> Array:
        low, vanishes, logs = self._kinds()
        exponentials = np.exp(np.where(logs, theta, 0.0))
        return np.where(logs, exponentials - np.where(vanishes, np.exp(low), 0.0), theta)

    def theta(self, values: Array) -> Array:
        """The inverse of `values`, inside the box."""
        low, vanishes, logs = self._kinds()
        raised = values + np.where(vanishes, np.exp(low), 0.0)
        logarithms = np.log(np.where(logs, np.maximum(raised, NEGLIGIBLE), 1.0))
        return np.clip(np.where(logs, logarithms, values), *self.box)

    def _kinds(self) -> tuple[Array, NDArray[np.bool_], NDArray[np.bool_]]:
        low = np.where([p.log for p in self.parameters], self.box[0], 0.0)
        vanishes = np.array([p.vanishes for p in self.parameters])
        return low, vanishes, np.array([p.log for p in self.parameters])


class ComputeForm(Form):
    """A law in compute alone, fitted to the lower envelope; it can be read backwards."""

    inputs = ("compute",)

    def places(self, inputs: Inputs) -> Array:
        return np.log(inputs["compute"])[:, None]

    @abstractmethod
    def compute(self, values: Array, error: Array) -> Array:
        """Compute (R, n) that `values` (R, P) need for errors (R, n); inf for one out of reach."""


class Power(ComputeForm):
    """error = A C^-a; compute may hurt (a < 0)."""

    name = "power"
    formula = "A C^-a"
    parameters = (
        Parameter("A", "scale", SCALES),
        Parameter("a", "exponent of compute", ANY_EXPONENT, log=False),
    )

    def error(self, values: Array, inputs: Inputs) -> Array:
        scale, a = _columns(values)
        return scale * _decay(inputs["compute"], a)

    def starts(self, inputs: Inputs, error: Array) -> Array:
        slope, height = np.polyfit(np.log(inputs["compute"]), np.log(error), 1)
        return self.theta(np.array([[np.exp(height), -slope]]))

    def to_units(self, values: Array, units: Mapping[str, float]) -> Array:
        scale, a = values.T
        return np.stack([units["error"] * scale * units["compute"] ** a, a], axis=1)

    def compute(self, values: Array, error: Array) -> Array:
        scale, a = _columns(values)
        return _inverse(error / scale, a)


class Saturating(ComputeForm):
    """error = A (C + B)^-a + E (Zhai et al., Scaling Vision Transformers, 2022, section 2)."""

    name = "saturating"
    formula = "A (C + B)^-a + E"
    parameters = (
        Parameter("A", "scale", SCALES),
        Parameter("a", "exponent of compute", EXPONENTS, log=False),
        Parameter("B", "compute worth of chance level", OFFSETS, vanishes=True),
        Parameter("E", "error that compute does not remove", FLOORS, vanishes=True),
    )

    def error(self, values: Array, inputs: Inputs) -> Array:
        scale, a, offset, floor = _columns(values)
        return scale * _decay(inputs["compute"] + offset, a) + floor

    def starts(self, inputs: Inputs, error: Array) -> Array:
        found = []
        for a, offset in product(GRID, (0.0, *np.geomspace(1e-3, 10, 9))):
            terms = np.stack([(inputs["compute"] + offset) ** -a, np.ones_like(error)], axis=1)
            (scale, floor), misfit = _project(terms, error)
            found.append((misfit, [scale, a, offset, floor]))
        return _best(self, found)

    def to_units(self, values: Array, units: Mapping[str, float]) -> Array:
        scale, a, offset, floor = values.T
        scale = units["error"] * scale * units["compute"] ** a
        return np.stack([scale, a, offset * units["compute"], floor * units["error"]], axis=1)

    def compute(self, values: Array, error: Array) -> Array:
        scale, a, offset, floor = _columns(values)
        return np.maximum(_inverse((error - floor) / scale, a) - offset, 0.0)


class SizeAndSamples(Form):
    """error = E + A / N^a + B / D^b (Hoffmann et al., Training Compute-Optimal Large Language
    Models, 2022, equation 2), D in samples seen."""

    name = "size_samples"
    formula = "E + A / N^a + B / D^b"
    inputs: tuple[str, ...] = ("parameters", "samples")
    parameters: tuple[Parameter, ...] = (
        Parameter("E", "error that neither size nor data removes", FLOORS, vanishes=True),
        Parameter("A", "scale of size", SCALES),
        Parameter("a", "exponent of size", EXPONENTS, log=False),
        Parameter("B", "scale of data", SCALES),
        Parameter("b", "exponent of data", EXPONENTS, log=False),
    )

    def places(self, inputs: Inputs) -> Array:
        size, samples = np.log(inputs["parameters"]), np.log(inputs["samples"])
        return np.stack([size + samples, size - samples], axis=1)

    def error(self, values: Array, inputs: Inputs) -> Array:
        floor, a_scale, a, b_scale, b = _columns(values[:, :5])
        of_size = a_scale * _decay(inputs["parameters"], a)
        return floor + of_size + b_scale * _decay(inputs["samples"], b)

    def starts(self, inputs: Inputs, error: Array) -> Array:
        return _best(self, self._grid(inputs["parameters"], inputs["samples"], error))

    def to_units(self, values: Array, units: Mapping[str, float]) -> Array:
        result = values.copy()
        result[:, 0] *= units["error"]
        result[:, 1] *= units["error"] * units["parameters"] ** values[:, 2]
        result[:, 3] *= units["error"] * units["samples"] ** values[:, 4]
        return result

    def best_size(self, values: Array, work: Array, unique_samples: Array) -> Array:
        """The parameters N (R, m) of least error where N D = `work` (m,), for `values` (R, P).

        `unique_samples` (m,) matter to `Repetition` only.
        """
        _, a_scale, a, b_scale, b = _columns(values[:, :5])
        return (a * a_scale / (b * b_scale) * work**b) ** (1 / (a + b))

    def _grid(self, size: Array, samples: Array, error: Array) -> list[tuple[float, list[float]]]:
        found = []
        for a, b in product(GRID, GRID):
            terms = np.stack([np.ones_like(error), size**-a, samples**-b], axis=1)
            (floor, a_scale, b_scale), misfit = _project(terms, error)
            found.append((misfit, [floor, a_scale, a, b_scale, b]))
        return found


class Repetition(SizeAndSamples):
    """`SizeAndSamples` on effective sizes: what is repeated is worth less each time (Muennighoff
    et al., Scaling Data-Constrained Language Models, 2023, equations 5 and 6).

    D' = U + U R_D (1 - exp(-(D / U - 1) / R_D)) for U unique samples, and likewise N' for N
    beyond the U_N that U would be compute-optimal for, where compute goes as N D.
    """

    name = "repetition"
    formula = "E + A / N'^a + B / D'^b"
    inputs = ("parameters", "samples", "unique_samples")
    parameters = (
        *SizeAndSamples.parameters,
        Parameter("R_D", "repeats of data after which the value of one has fallen by e", REPEATS),
        Parameter("R_N", "the same for parameters beyond what the data need", REPEATS),
    )

    def error(self, values: Array, inputs: Inputs) -> Array:
        _, a_scale, a, b_scale, b, data_decay, size_decay = _columns(values)
        size, unique = inputs["parameters"], np.minimum(inputs["unique_samples"], inputs["samples"])
        # a A / N^a = b B / U^b: where a step in size and a step in data are worth the same
        balance = np.log(a * a_scale / (b * b_scale)) + b * np.log(unique)
        needed = np.minimum(np.exp(np.clip(balance / a, -LARGE, LARGE)), size)
        worth = {
            "parameters": _effective(size, needed, size_decay),
            "samples": _effective(inputs["samples"], unique, data_decay),
        }
        return super().error(values, worth)

    def places(self, inputs: Inputs) -> Array:
        repeats = np.log(np.maximum(inputs["samples"] / inputs["unique_samples"], 1.0))
        return np.column_stack([super().places(inputs), repeats])

    def best_size(self, values: Array, work: Array, unique_samples: Array) -> Array:
        without = super().best_size(values, work, unique_samples)  # (R, m)
        each = zip(without.T, work, unique_samples, strict=True)
        return np.stack([self._search(values, *budget) for budget in each], axis=1)

    def _search(self, values: Array, start: Array, work: float, unique: float) -> Array:
        """`best_size` (R,) for one budget, on ever finer grids of sizes about `start` (R,)."""
        best, width = start[:, None], SEARCH_WIDTH
        for _ in range(SEARCHES):
            size = best * np.exp(np.linspace(-width, width, SEARCH_POINTS))  # (R, S)
            samples = work / size
            inputs = {"parameters": size, "samples": samples, "unique_samples": np.array(unique)}
            least = self.error(values, inputs).argmin(axis=1)
            best = np.take_along_axis(size, least[:, None], axis=1)
            width *= 2 / (SEARCH_POINTS - 1)
        return best[:, 0]

    def starts(self, inputs: Inputs, error: Array) -> Array:
        unique = np.minimum(inputs["unique_samples"], inputs["samples"])
        found = []
        for data, size in product((1.0, 4.0, 15.0, 60.0), (1.0, 5.0, 25.0)):
            samples = _effective(inputs["samples"], unique, np.array(data))
            grid = self._grid(inputs["parameters"], samples, error)
            # N in the place of N', which needs the coefficients that are looked for here.
            misfit, values = min(grid)
            found.append((misfit, [*values, data, size]))
        return _best(self, found, 12)

    def to_units(self, values: Array, units: Mapping[str, float]) -> Array:
        return np.concatenate([super().to_units(values[:, :5], units), values[:, 5:]], axis=1)


FORMS: dict[str, Form] = {
    form.name: form for form in (Power(), Saturating(), SizeAndSamples(), Repetition())
}


def _columns(theta: Array) -> tuple[Array, ...]:
    """Parameters as (R, 1) each."""
    return tuple(theta[:, p, None] for p in range(theta.shape[1]))


def _decay(size: Array, exponent: Array) -> Array:
    """size ** -exponent; through one logarithm per size much quicker than by `**`."""
    return np.exp(-exponent * np.log(size))


def _inverse(share: Array, exponent: Array) -> Array:
    """C where C ** -exponent = share; inf where more compute does not lower the error."""
    reachable = (share > 0) & (exponent > 0)
    power = -np.log(np.where(reachable, share, 1.0)) / np.where(reachable, exponent, 1.0)
    return np.where(reachable, np.exp(np.minimum(power, LARGE)), np.inf)


def _effective(seen: Array, unique: Array, decay: Array) -> Array:
    """What `seen` is worth in unique ones."""
    return unique * (1 - decay * np.expm1(-(seen / unique - 1) / decay))


def _project(terms: Array, error: Array) -> tuple[Array, float]:
    """Non-negative coefficients (k,) of terms (n, k) with the least relative misfit, and that."""
    return nnls(terms / error[:, None], np.ones_like(error))


def _best(form: Form, found: list[tuple[float, list[float]]], count: int = KEPT_STARTS) -> Array:
    """The values with the least misfit, as `theta` (S, P)."""
    found = sorted(found, key=lambda entry: entry[0])
    return form.theta(np.array([values for _, values in found[:count]]))
