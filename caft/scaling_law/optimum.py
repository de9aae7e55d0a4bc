"""What to do with a budget: the size and the samples that a law in both expects most of.
After a fit; the study of a sweep reports it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from caft.errors import DataError, UnidentifiedError
from caft.scaling_law.fitted import Band, Fit
from caft.scaling_law.forms import SizeAndSamples
from caft.scaling_law.inputs import check_numbers

Array = NDArray[np.float64]

EVEN_COST = 1.2  # costs of runs differ by less than this factor where compute goes as N D


@dataclass(frozen=True)
class Cost:
    """Compute of a training run over parameters x samples; `spread` is the factor (geometric
    standard deviation) by which runs differ in it."""

    factor: float
    spread: float

    @property
    def problem(self) -> str | None:
        """Why the optimum is rough, None where it is not."""
        if self.spread <= EVEN_COST:
            return None
        return (
            f"compute over parameters x samples differs between runs by a factor of "
            f"{self.spread:.2f}: the optimum, which takes it to be one number, is rough"
        )


@dataclass(frozen=True)
class Optimum:
    """The best use of m budgets of compute, with 95% intervals."""

    compute: Array  # (m,)
    parameters: Band
    samples: Band
    error: Band  # of the law there, not of a single run
    beyond: NDArray[np.bool_]  # (m,) the optimum is outside the sizes or the samples measured


def measure_cost(compute: ArrayLike, parameters: ArrayLike, samples: ArrayLike) -> Cost:
    """The cost of n runs, each (n,)."""
    columns = check_numbers({"compute": compute, "parameters": parameters, "samples": samples})
    logs = np.log(columns["compute"] / columns["parameters"] / columns["samples"])
    return Cost(float(np.exp(logs.mean())), float(np.exp(logs.std())))


def compute_optimal(
    fit: Fit, compute: ArrayLike, cost: Cost, unique_samples: float | None = None
) -> Optimum:
    """N* and D* of least error for each budget, where compute = cost x N x D.

    Args:
        fit: of the form `size_samples` or `repetition`.
        compute: (m,) budgets, in the unit that `cost` was measured in.
        unique_samples: what there is to train on, for `repetition`; without it, no repeats.

    Raises:
        UnidentifiedError: the runs do not tell an exponent or scale that the optimum depends on.
        DataError: another form, or a budget that is not a positive number.
    """
    form = fit.form
    if not isinstance(form, SizeAndSamples):
        raise DataError(f"{form.name}: no optimum; it needs a law in parameters and samples")
    for estimate in fit.estimates[1:]:  # all but E
        if not estimate.identified:
            raise UnidentifiedError(
                f"no optimum can be recommended: {estimate.name} ({estimate.meaning}) "
                f"{estimate.problem}; add runs over a wider range of sizes and samples"
            )
    budgets = check_numbers({"budget": np.atleast_1d(np.asarray(compute, float))})["budget"]
    work = budgets / cost.factor  # (m,)
    unique = np.full(len(work), np.inf if unique_samples is None else unique_samples)
    everyone = np.concatenate([fit.values[None], fit.replicates])  # (1 + R, P)
    sizes = form.best_size(everyone, work, unique)  # (1 + R, m)
    samples = work / sizes
    here = {"parameters": sizes[0], "samples": samples[0], "unique_samples": unique}
    errors = np.concatenate([fit.law(here)[None], fit.replicate_laws(here)])
    outside = [
        (chosen < fit.inputs[name].min()) | (chosen > fit.inputs[name].max())
        for name, chosen in (("parameters", sizes[0]), ("samples", samples[0]))
    ]
    return Optimum(
        budgets,
        Band.of(sizes[0], sizes[1:]),
        Band.of(samples[0], samples[1:]),
        Band.of(errors[0], errors[1:]),
        outside[0] | outside[1],
    )


def growth(fit: Fit) -> tuple[Band, Band]:
    """The exponents of compute with which N* and D* grow, (1,) each: b / (a + b), a / (a + b).

    They hold for `size_samples`, and for `repetition` as long as nothing is repeated.
    """
    names = [estimate.name for estimate in fit.estimates]
    columns = [names.index("a"), names.index("b" if "b" in names else "a")]  # `tied` has one
    of_size, of_data = fit.values[columns]
    sizes, data = fit.replicates[:, columns].T
    total, totals = of_size + of_data, (sizes + data)[:, None]
    return (
        Band.of(np.array([of_data / total]), data[:, None] / totals),
        Band.of(np.array([of_size / total]), sizes[:, None] / totals),
    )
