"""Chooses between forms by what they say of the largest runs, which they have not seen.
Between the fits of single forms and the study of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from caft.errors import DataError
from caft.scaling_law.fit import REPLICATES, Band, Fit, fit_envelope, fit_form, lower_envelope
from caft.scaling_law.forms import FORMS, ComputeForm
from caft.scaling_law.inputs import check_numbers, form_inputs
from caft.scaling_law.solve import EXACT

Array = NDArray[np.float64]

HELD_OUT_SHARE = 0.25  # of the points, the largest
PARSIMONY = 1.1  # a form with more parameters must be better by more than this factor


@dataclass(frozen=True)
class HeldOut:
    """What a form fitted to the smaller runs says of the m largest."""

    inputs: Mapping[str, Array]  # (m,) each
    error: Array  # (m,) as measured
    prediction: Band

    @property
    def log_error(self) -> float:
        """Root mean square of log(prediction / measured)."""
        return float(np.sqrt((np.log(self.prediction.value / self.error) ** 2).mean()))

    @property
    def inside(self) -> int:
        """How many of the m lie inside their intervals."""
        band = self.prediction
        return int(((band.low <= self.error) & (self.error <= band.high)).sum())


@dataclass(frozen=True)
class Choice:
    """The forms that could be fitted, by name, and the one that said most of the largest runs.

    `held_out` lacks a form that the smaller runs are too few for; `refused` says why, also of a
    form that all runs are too few for.
    """

    chosen: str
    fits: Mapping[str, Fit]
    held_out: Mapping[str, HeldOut]
    refused: Mapping[str, str]

    @property
    def fit(self) -> Fit:
        """The chosen form, fitted to all runs."""
        return self.fits[self.chosen]


def choose_form(
    names: Sequence[str],
    inputs: Mapping[str, ArrayLike],
    error: ArrayLike,
    groups: ArrayLike | None = None,
    envelope_bins: int = 5,
    replicates: int = REPLICATES,
) -> Choice:
    """Fit several forms to n runs, and choose by their error on the largest quarter.

    Of forms whose errors on held-out runs are within 10%, the one with the fewest parameters is
    chosen; where nothing can be held out, the one with the fewest.

    Args:
        names: forms in compute alone, or in parameters and samples.
        inputs: as in `fit_form`, as are error and groups.
        envelope_bins: of forms in compute; their points are those of the envelope of all runs.

    Raises:
        DataError: runs that no form can be fitted to; the first form's reason.
    """
    fits: dict[str, Fit] = {}
    held_out: dict[str, HeldOut] = {}
    refused: dict[str, str] = {}
    for name in names:
        form = FORMS[name]
        try:
            if isinstance(form, ComputeForm):
                compute = inputs["compute"]
                fits[name] = fit_envelope(name, compute, error, envelope_bins, replicates, groups)
            else:
                fits[name] = fit_form(name, inputs, error, replicates, groups)
        except DataError as problem:
            refused[name] = str(problem)
            continue
        try:
            held_out[name] = hold_out(name, inputs, error, groups, envelope_bins, replicates)
        except DataError as problem:
            refused[name] = f"not judged by the largest runs: without them {problem}"
    if not fits:
        raise DataError(next(iter(refused.values())))
    return Choice(_best(fits, held_out), fits, held_out, refused)


def hold_out(
    name: str,
    inputs: Mapping[str, ArrayLike],
    error: ArrayLike,
    groups: ArrayLike | None = None,
    envelope_bins: int = 5,
    replicates: int = REPLICATES,
) -> HeldOut:
    """Fit a form to all but the largest quarter of n runs, and predict those.

    Largest is by compute, or by parameters x samples; of a form in compute, on the envelope. Runs
    as large as the smallest held out are held out too.

    Raises:
        DataError: too few runs are left to fit, as in `fit_form`.
    """
    form = FORMS[name]
    arrays = check_numbers({**form_inputs(form, inputs), "error": error})
    labels = None if groups is None else np.asarray(groups)
    if isinstance(form, ComputeForm):
        best = lower_envelope(arrays["compute"], arrays["error"], envelope_bins)
        arrays = {key: column[best] for key, column in arrays.items()}
        labels = None if labels is None else labels[best]
        size = arrays["compute"]
    else:
        size = arrays["parameters"] * arrays["samples"]
    errors = arrays.pop("error")
    count = max(1, int(HELD_OUT_SHARE * len(errors)))
    large = size >= np.sort(size)[-count] * (1 - EXACT)
    fit = fit_form(
        name,
        {key: column[~large] for key, column in arrays.items()},
        errors[~large],
        replicates,
        None if labels is None else labels[~large],
    )
    beyond = {key: column[large] for key, column in arrays.items()}
    return HeldOut(beyond, errors[large], fit.predict(beyond))


def _best(fits: Mapping[str, Fit], held_out: Mapping[str, HeldOut]) -> str:
    simplest = sorted(fits, key=lambda name: len(fits[name].form.parameters))
    judged = [name for name in simplest if name in held_out]
    if not judged:
        return simplest[0]
    least = min(held_out[name].log_error for name in judged)
    return next(n for n in judged if held_out[n].log_error <= PARSIMONY * least + EXACT)
