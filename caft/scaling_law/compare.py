"""Two model families at equal compute: how far apart, and what compute makes up for it.
After the fits of both; the study of a sweep reports it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from caft.errors import DataError
from caft.scaling_law.fit import Band, Fit
from caft.scaling_law.forms import ComputeForm
from caft.scaling_law.inputs import check_numbers

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """One family against another at m computes, with 95% intervals of the laws."""

    compute: Array  # (m,)
    ratio: Band  # error of the one over error of the other
    multiple: Band  # of its compute that the other needs to do as well; inf: it never does
    beyond: NDArray[np.bool_]  # (m,) outside the computes that both have runs at

    @property
    def apart(self) -> NDArray[np.bool_]:
        """(m,) whether the interval of `ratio` leaves out 1: the families differ."""
        return (self.ratio.high < 1) | (self.ratio.low > 1)


def compare(one: Fit, other: Fit, compute: ArrayLike) -> Comparison:
    """The family of fit `one` against that of `other` at `compute` (m,), in one unit for both.

    The multiple is above 1 where `one` is the better: with its compute times the multiple, the
    other has its error.

    Raises:
        DataError: a fit that is no law in compute, or a compute that is not a positive number.
    """
    form = other.form
    if not isinstance(one.form, ComputeForm) or not isinstance(form, ComputeForm):
        raise DataError(
            f"{one.form.name} and {form.name}: families are compared by laws in compute alone; "
            "fit `power` or `saturating` to both"
        )
    places = check_numbers({"compute": np.atleast_1d(np.asarray(compute, float))})["compute"]
    inputs = {"compute": places}
    # Two fits of as many runs draw the same chance; shuffled, theirs are independent.
    order = np.random.default_rng(0).permutation(len(other.replicates))
    count = min(len(order), len(one.replicates))
    errors, others = one.replicate_laws(inputs)[:count], other.replicate_laws(inputs)[order[:count]]
    needed = form.compute(other.values[None], one.law(inputs))[0]
    needs = form.compute(other.replicates[order[:count]], errors)
    ends = [(fit.inputs["compute"].min(), fit.inputs["compute"].max()) for fit in (one, other)]
    low, high = max(end[0] for end in ends), min(end[1] for end in ends)
    return Comparison(
        places,
        Band.of(one.law(inputs) / other.law(inputs), errors / others),
        Band.of(needed / places, needs / places),
        (places < low) | (places > high),
    )
