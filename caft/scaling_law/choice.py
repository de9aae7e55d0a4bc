"""Chooses between forms by what they say of the largest runs, which they have not seen.
Between the fits of single forms and the study of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

from caft.errors import DataError
from caft.scaling_law.fit import REPLICATES, fit_form
from caft.scaling_law.fitted import Band, Fit
from caft.scaling_law.form import ComputeForm
from caft.scaling_law.forms import FORMS
from caft.scaling_law.front import front
from caft.scaling_law.inputs import check_numbers, form_inputs
from caft.scaling_law.misfit import EXACT
from caft.scaling_law.solve import CONFIDENCE

Array = NDArray[np.float64]

CUTS = (0.5, 0.65, 0.8)  # of the range of log compute: runs beyond are held out
PARSIMONY = 1.1  # a form with more parameters must be better by more than this factor
FAR = 10.0  # difference of the criterion: odds of about 150 to 1
HELD_OUT_REPLICATES = 200  # at most, at each cut


@dataclass(frozen=True)
class Points:
    """What forms are fitted to: n runs, or those of them on the front."""

    inputs: Mapping[str, Array]  # (n,) each
    error: Array  # (n,)
    groups: NDArray[np.str_] | None
    noise: Array | None

    @property
    def size(self) -> Array:
        """What runs are cut by: compute, or what it is proportional to."""
        if "compute" in self.inputs:
            return self.inputs["compute"]
        return self.inputs["samples"] * self.inputs.get("parameters", 1.0)

    def __getitem__(self, places: NDArray[np.intp] | NDArray[np.bool_]) -> Points:
        return Points(
            {name: column[places] for name, column in self.inputs.items()},
            self.error[places],
            None if self.groups is None else self.groups[places],
            None if self.noise is None else self.noise[places],
        )

    def fit(self, form: str, replicates: int, ceiling: float | None) -> Fit:
        return fit_form(
            form, self.inputs, self.error, replicates, self.groups, 0, self.noise, ceiling
        )


@dataclass(frozen=True)
class HeldOut:
    """What a form fitted to the runs below several cuts of compute says of the m beyond them; a run
    beyond two cuts is there twice."""

    inputs: Mapping[str, Array]  # (m,) each
    error: Array  # (m,) as measured
    prediction: Band
    reach: Array  # (m,) size of the run over that of the largest one fitted

    @property
    def log_error(self) -> float:
        """Root mean square of log(prediction / measured)."""
        return float(np.sqrt((np.log(self.prediction.value / self.error) ** 2).mean()))

    @property
    def with_interval(self) -> int:
        """How many of the m were given an interval: what few runs predict has none."""
        return int(np.isfinite(self.prediction.high).sum())

    @property
    def inside(self) -> int:
        """How many of those lie inside it."""
        band = self.prediction
        within = (band.low <= self.error) & (self.error <= band.high)
        return int((within & np.isfinite(band.high)).sum())

    @property
    def problem(self) -> str | None:
        """Why the intervals are not to be trusted; None where they hold as often as they say."""
        runs = self.with_interval
        if not runs:
            return None
        outside = runs - self.inside
        chance = binomtest(outside, runs, 1 - CONFIDENCE, alternative="greater").pvalue
        if chance >= 1 - CONFIDENCE:
            return None
        return (
            f"{outside} of {runs} held-out runs lie outside their 95% intervals "
            f"(binomial test, p = {chance:.1g}): take the intervals for too narrow"
        )


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
    envelope_bins: int | None = None,
    replicates: int = REPLICATES,
    noise: ArrayLike | None = None,
    ceiling: float | None = None,
) -> Choice:
    """Fit several forms to n runs, and choose by their error on the runs beyond several cuts of
    compute, the same runs for all.

    Of forms whose errors on held-out runs are within 10%, the one with the fewest parameters is
    chosen; where nothing can be held out, the one with the fewest.

    Args:
        names: forms in compute alone, or in parameters and samples.
        inputs: as in `fit_form`, as are error, groups, noise and ceiling.
        envelope_bins: bins whose best runs are fitted to, 0 for all runs; None for the front.
            Of forms in compute.

    Raises:
        DataError: runs that no form can be fitted to; the first form's reason.
    """
    points = _points(names, inputs, error, groups, envelope_bins, noise)
    fits: dict[str, Fit] = {}
    refused: dict[str, str] = {}
    for name in names:
        try:
            fits[name] = points.fit(name, replicates, ceiling)
        except DataError as problem:
            refused[name] = str(problem)
    if not fits:
        raise DataError(next(iter(refused.values())))
    held_out, not_judged = _judge(list(fits), points, replicates, ceiling)
    return Choice(_best(fits, held_out), fits, held_out, {**refused, **not_judged})


def hold_out(
    name: str,
    inputs: Mapping[str, ArrayLike],
    error: ArrayLike,
    groups: ArrayLike | None = None,
    envelope_bins: int | None = None,
    replicates: int = REPLICATES,
) -> HeldOut:
    """Fit a form to the runs below each of several cuts of compute, and predict those beyond.

    Size is compute, or parameters x samples; of a form in compute, on the front.

    Raises:
        DataError: too few runs are left to fit, as in `fit_form`.
    """
    points = _points([name], inputs, error, groups, envelope_bins, None)
    held_out, refused = _judge([name], points, replicates, None)
    if name not in held_out:
        raise DataError(refused[name])
    return held_out[name]


def _points(
    names: Sequence[str],
    inputs: Mapping[str, ArrayLike],
    error: ArrayLike,
    groups: ArrayLike | None,
    bins: int | None,
    noise: ArrayLike | None,
) -> Points:
    unknown = [name for name in names if name not in FORMS]
    if unknown:
        raise DataError(f"{unknown[0]}: no such form; there are {', '.join(FORMS)}")
    forms = [FORMS[name] for name in names]
    wanted = dict.fromkeys(key for form in forms for key in form_inputs(form, inputs))
    if "compute" in inputs:
        wanted["compute"] = None
    arrays = check_numbers({**{key: np.asarray(inputs[key]) for key in wanted}, "error": error})
    errors = arrays.pop("error")
    labels = None if groups is None else np.asarray(groups).astype(str)
    points = Points(arrays, errors, labels, None if noise is None else np.asarray(noise, float))
    if any(isinstance(form, ComputeForm) for form in forms):
        return points[front(arrays["compute"], errors, bins)]
    return points


def _judge(
    names: Sequence[str], points: Points, replicates: int, ceiling: float | None
) -> tuple[dict[str, HeldOut], dict[str, str]]:
    """Each form on the same held-out runs, and why some could not be judged: cuts below which one
    of the other forms has too few runs are left out."""
    found: dict[str, dict[float, tuple[Fit, Points, float]]] = {name: {} for name in names}
    refused: dict[str, str] = {}
    size = points.size
    logs = np.log(size)
    for share in CUTS:
        below = logs < logs.min() + share * np.ptp(logs) - EXACT
        if below.all() or not below.any():
            continue
        for name in names:
            try:
                fit = points[below].fit(name, min(replicates, HELD_OUT_REPLICATES), ceiling)
            except DataError as problem:
                refused.setdefault(name, f"not judged by the largest runs: without them {problem}")
                continue
            found[name][share] = fit, points[~below], float(size[below].max())
    judged = [name for name in names if found[name]]
    refused = {name: why for name, why in refused.items() if name not in judged}
    common = [share for share in CUTS if all(share in found[name] for name in judged)]
    held_out = {name: _join([found[name][share] for share in common]) for name in judged if common}
    for name in names:
        if name not in held_out:
            refused.setdefault(name, "not judged by the largest runs: no run lies beyond a cut")
    return held_out, refused


def _join(parts: Sequence[tuple[Fit, Points, float]]) -> HeldOut:
    bands = [fit.predict(points.inputs) for fit, points, _ in parts]
    names = parts[0][1].inputs
    return HeldOut(
        {name: np.concatenate([points.inputs[name] for _, points, _ in parts]) for name in names},
        np.concatenate([points.error for _, points, _ in parts]),
        Band(
            np.concatenate([band.value for band in bands]),
            np.concatenate([band.low for band in bands]),
            np.concatenate([band.high for band in bands]),
        ),
        np.concatenate([points.size / largest for _, points, largest in parts]),
    )


def _best(fits: Mapping[str, Fit], held_out: Mapping[str, HeldOut]) -> str:
    simplest = sorted(fits, key=lambda name: len(fits[name].form.parameters))
    judged = [name for name in simplest if name in held_out]
    if not judged:
        return simplest[0]
    # What is far from the runs it was fitted to is not chosen for a lucky guess beyond them.
    criteria = {name: _criterion(fits[name]) for name in judged}
    judged = [name for name in judged if criteria[name] <= min(criteria.values()) + FAR]
    least = min(held_out[name].log_error for name in judged)
    return next(n for n in judged if held_out[n].log_error <= PARSIMONY * least + EXACT)


def _criterion(fit: Fit) -> float:
    """Akaike's information criterion of a fit, corrected for few points (Hurvich & Tsai 1989); less
    is better. Without the correction four parameters always win on eight points."""
    points, parameters = len(fit.error), len(fit.values)
    square = float((fit.residuals**2).mean()) + EXACT**2
    free = max(points - parameters - 1, 0.5)
    return points * float(np.log(square)) + 2 * parameters * (1 + (parameters + 1) / free)
