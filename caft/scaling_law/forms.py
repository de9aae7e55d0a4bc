"""The functional forms: what error depends on, and how.
Each is fitted in units of its inputs' geometric means, so that scale and exponent hardly trade."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import numpy as np

from caft.scaling_law.form import (
    LARGE,
    Array,
    ComputeForm,
    Form,
    Inputs,
    Parameter,
    best_starts,
    columns_of,
    decayed,
    inverse,
    project,
)

EXPONENTS = (0.005, 3.0)
ANY_EXPONENT = (-10.0, 10.0)  # of a power law alone, which any two runs determine
SCALES = (1e-3, 1e2)  # of a term, as a share of the mean error at the mean inputs
FLOORS = (1e-3, 1.5)  # of E, as a share of the mean error
OFFSETS = (1e-4, 1e2)  # of B in (C + B), as a share of the mean compute
REPEATS = (0.05, 500.0)  # R*, in repeats
GRID = np.geomspace(0.05, 1.6, 14)  # of exponents, for starts
SEARCH_WIDTH, SEARCH_POINTS, SEARCHES = 7.0, 41, 5  # of log size: from a factor of 1000 to 2e-6
MOST_PASSES = 1000.0  # over the data; what more teach is nothing


class Power(ComputeForm):
    """error = A C^-a; compute may hurt (a < 0)."""

    name = "power"
    formula = "A C^-a"
    parameters = (
        Parameter("A", "scale", SCALES),
        Parameter("a", "exponent of compute", ANY_EXPONENT, log=False),
    )

    def error(self, values: Array, inputs: Inputs) -> Array:
        scale, a = columns_of(values)
        return scale * decayed(inputs["compute"], a)

    def starts(self, inputs: Inputs, error: Array) -> Array:
        slope, height = np.polyfit(np.log(inputs["compute"]), np.log(error), 1)
        return self.theta(np.array([[np.exp(height), -slope]]))

    def to_units(self, values: Array, units: Mapping[str, float]) -> Array:
        scale, a = values.T
        return np.stack([units["error"] * scale * units["compute"] ** a, a], axis=1)

    def compute(self, values: Array, error: Array) -> Array:
        scale, a = columns_of(values)
        return inverse(error / scale, a)


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
        scale, a, offset, floor = columns_of(values)
        return scale * decayed(inputs["compute"] + offset, a) + floor

    def starts(self, inputs: Inputs, error: Array) -> Array:
        found = []
        for a, offset in product(GRID, (0.0, *np.geomspace(1e-3, 10, 9))):
            terms = np.stack([(inputs["compute"] + offset) ** -a, np.ones_like(error)], axis=1)
            (scale, floor), misfit = project(terms, error)
            found.append((misfit, [scale, a, offset, floor]))
        return best_starts(self, found)

    def to_units(self, values: Array, units: Mapping[str, float]) -> Array:
        scale, a, offset, floor = values.T
        scale = units["error"] * scale * units["compute"] ** a
        return np.stack([scale, a, offset * units["compute"], floor * units["error"]], axis=1)

    def compute(self, values: Array, error: Array) -> Array:
        scale, a, offset, floor = columns_of(values)
        return np.maximum(inverse((error - floor) / scale, a) - offset, 0.0)


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

    def asymptote(self, ceiling: float) -> float:
        return ceiling

    def places(self, inputs: Inputs) -> Array:
        size, samples = np.log(inputs["parameters"]), np.log(inputs["samples"])
        return np.stack([size + samples, size - samples], axis=1)

    def error(self, values: Array, inputs: Inputs) -> Array:
        floor, a_scale, a, b_scale, b = columns_of(values[:, :5])
        of_size = a_scale * decayed(inputs["parameters"], a)
        return floor + of_size + b_scale * decayed(inputs["samples"], b)

    def starts(self, inputs: Inputs, error: Array) -> Array:
        return best_starts(self, self._grid(inputs["parameters"], inputs["samples"], error))

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
        _, a_scale, a, b_scale, b = columns_of(values[:, :5])
        return (a * a_scale / (b * b_scale) * work**b) ** (1 / (a + b))

    def _grid(self, size: Array, samples: Array, error: Array) -> list[tuple[float, list[float]]]:
        found = []
        for a, b in product(GRID, GRID):
            terms = np.stack([np.ones_like(error), size**-a, samples**-b], axis=1)
            (floor, a_scale, b_scale), misfit = project(terms, error)
            found.append((misfit, [floor, a_scale, a, b_scale, b]))
        return found


class Tied(SizeAndSamples):
    """`SizeAndSamples` with one exponent for both, so that error over compute has one slope at any
    number of samples per parameter, also far beyond what is compute-optimal (Gadre et al., Language
    models scale reliably with over-training, 2024, equation 4)."""

    name = "tied"
    formula = "E + A / N^a + B / D^a"
    parameters = (
        *SizeAndSamples.parameters[:2],
        Parameter("a", "exponent of size and of data", EXPONENTS, log=False),
        SizeAndSamples.parameters[3],
    )

    def error(self, values: Array, inputs: Inputs) -> Array:
        return super().error(_untied(values), inputs)

    def starts(self, inputs: Inputs, error: Array) -> Array:
        found = []
        for a in GRID:
            terms = [inputs[name] ** -a for name in self.inputs]
            coefficients, misfit = project(np.stack([np.ones_like(error), *terms], axis=1), error)
            found.append((misfit, [*coefficients[:2], a, coefficients[2]]))
        return best_starts(self, found)

    def to_units(self, values: Array, units: Mapping[str, float]) -> Array:
        return super().to_units(_untied(values), units)[:, :4]

    def best_size(self, values: Array, work: Array, unique_samples: Array) -> Array:
        return super().best_size(_untied(values), work, unique_samples)


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
        _, a_scale, a, b_scale, b, data_decay, size_decay = columns_of(values)
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
        return best_starts(self, found, 12)

    def to_units(self, values: Array, units: Mapping[str, float]) -> Array:
        return np.concatenate([super().to_units(values[:, :5], units), values[:, 5:]], axis=1)


class Decay(Form):
    """error = E + B / D'^b of one size of model on D samples, of which U are unique: each pass
    over them teaches less than the one before, by half every h passes (Goyal et al., Scaling Laws
    for Data Filtering, 2024, equation 3). b and h tell the quality of the data: pools are families.

    log D' = log U + the sum over passes k from 2 of 2^(-(k - 1) / h) log(D_k / D_(k-1)), for D_k
    samples seen by the end of pass k.
    """

    name = "decay"
    formula = "E + B / D'^b"
    inputs = ("samples", "unique_samples")
    parameters = (
        Parameter("E", "error that such data do not remove", FLOORS, vanishes=True),
        Parameter("B", "scale of data", SCALES),
        Parameter("b", "exponent of new data", EXPONENTS, log=False),
        Parameter("h", "passes after which data teach half as much", REPEATS),
    )

    def asymptote(self, ceiling: float) -> float:
        return ceiling

    def places(self, inputs: Inputs) -> Array:
        repeats = np.maximum(inputs["samples"] / inputs["unique_samples"], 1.0)
        return np.log(np.stack([inputs["samples"], repeats], axis=1))

    def error(self, values: Array, inputs: Inputs) -> Array:
        floor, scale, b, half = columns_of(values)
        return floor + scale * np.exp(-b * self._worth(half, inputs))

    def starts(self, inputs: Inputs, error: Array) -> Array:
        found = []
        for half in (0.5, 2.0, 8.0, 32.0):
            worth = self._worth(np.array([[half]]), inputs)[0]
            for b in GRID:
                terms = np.stack([np.ones_like(error), np.exp(-b * worth)], axis=1)
                (floor, scale), misfit = project(terms, error)
                found.append((misfit, [floor, scale, b, half]))
        return best_starts(self, found)

    def to_units(self, values: Array, units: Mapping[str, float]) -> Array:
        floor, scale, b, half = values.T
        scale = units["error"] * scale * units["samples"] ** b
        return np.stack([units["error"] * floor, scale, b, half], axis=1)

    @staticmethod
    def _worth(half: Array, inputs: Inputs) -> Array:
        """log D' (R, n) for `half` (R, 1)."""
        unique = np.minimum(inputs["unique_samples"], inputs["samples"])
        passes = np.minimum(inputs["samples"] / unique, MOST_PASSES)  # (n,)
        whole = np.floor(passes).astype(int)
        number = np.arange(1, whole.max() + 1)  # of the pass that is over
        share = 2.0 ** (-(number - 1) / half)  # (R, K) of what the first pass teaches
        steps = share * np.log(number / np.maximum(number - 1, 1))
        over = np.cumsum(steps, axis=1)[:, whole - 1]
        return np.log(unique) + over + 2.0 ** (-whole / half) * np.log(passes / whole)


FORMS: dict[str, Form] = {
    form.name: form
    for form in (Power(), Saturating(), SizeAndSamples(), Tied(), Repetition(), Decay())
}

CHOSEN_FROM = tuple(name for name in FORMS if name != Tied.name)  # unasked: it fixes the optimum


def _untied(values: Array) -> Array:
    """Values (R, 4) of `Tied` as those of `SizeAndSamples`, (R, 5)."""
    return np.concatenate([values, values[:, 2:3]], axis=1)


def _effective(seen: Array, unique: Array, decay: Array) -> Array:
    """What `seen` is worth in unique ones."""
    return unique * (1 - decay * np.expm1(-(seen / unique - 1) / decay))
