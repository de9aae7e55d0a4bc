"""Error in two stages: the loss that compute gives, and the error that a loss gives.
Losses fall smoothly where errors of small models hardly move; the study reports both ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from caft.scaling_law.choice import choose_form
from caft.scaling_law.fit import REPLICATES, fit_law
from caft.scaling_law.fitted import Band, Fit
from caft.scaling_law.form import (
    NEGLIGIBLE,
    Array,
    Form,
    Inputs,
    Parameter,
    best_starts,
    columns_of,
    project,
)

GUESSING = (0.2, 50.0)  # g, as a share of the mean error
SCALES = (1e-3, 1e8)  # k, likewise
RATES = (0.05, 40.0)  # c, over the mean loss
STARTS = np.geomspace(0.1, 20, 16)  # of rates


class OfLoss(Form):
    """error = g - k exp(-c L) (Gadre et al., Language models scale reliably with over-training,
    2024, equation 5), L a loss on data that are the same for all runs."""

    name = "of_loss"
    formula = "g - k exp(-c L)"
    inputs = ("loss",)
    parameters = (
        Parameter("g", "error of guessing", GUESSING),
        Parameter("k", "scale", SCALES),
        Parameter("c", "rate", RATES),
    )

    def places(self, inputs: Inputs) -> Array:
        return np.log(inputs["loss"])[:, None]

    def error(self, values: Array, inputs: Inputs) -> Array:
        guessing, scale, rate = columns_of(values)
        error = guessing - scale * np.exp(-rate * inputs["loss"])
        return np.maximum(error, NEGLIGIBLE * guessing)

    def starts(self, inputs: Inputs, error: Array) -> Array:
        found = []
        for rate in STARTS:
            terms = np.stack([np.ones_like(error), -np.exp(-rate * inputs["loss"])], axis=1)
            (guessing, scale), misfit = project(terms, error)
            found.append((misfit, [guessing, scale, rate]))
        return best_starts(self, found)

    def to_units(self, values: Array, units: Mapping[str, float]) -> Array:
        guessing, scale, rate = values.T
        error = units["error"]
        return np.stack([error * guessing, error * scale, rate / units["loss"]], axis=1)


@dataclass(frozen=True)
class Stages:
    """The two laws of one family."""

    loss: Fit  # in compute, on the front of losses
    error: Fit  # of a loss

    def predict(self, compute: ArrayLike) -> Band:
        """The error of one new run on the front of losses for each compute (m,), with its 95%
        interval, which both stages widen."""
        places = {"compute": np.atleast_1d(np.asarray(compute, float))}
        value = self.loss.law(places)
        losses = self.loss.replicate_runs(places)
        if not len(losses) or not len(self.error.replicates):
            return Band.of(self.error.law({"loss": value}), np.empty((0, len(value))))
        count = min(len(losses), len(self.error.replicates))
        # Both stages draw alike; shuffled, they are independent.
        order = np.random.default_rng(0).permutation(len(self.error.replicates))[:count]
        around = self.error.replicate_runs({"loss": value})[order]
        around /= self.error.replicate_laws({"loss": value})[order]  # chance and misfit alone
        laws = self.error.form.error(self.error.replicates[order], {"loss": losses[:count]})
        errors = np.minimum(laws * around, self.error.ceiling)
        return Band.of(self.error.law({"loss": value}), errors)


def fit_stages(
    compute: ArrayLike,
    loss: ArrayLike,
    error: ArrayLike,
    forms: Sequence[str] = ("power", "saturating"),
    replicates: int = REPLICATES,
    ceiling: float | None = None,
) -> Stages:
    """Fit the law of the loss in compute, chosen among `forms`, and that of the error of a loss.

    Args:
        compute, loss, error: (n,) of all runs; the second stage is fitted to all of them.
        ceiling: the error of guessing, where errors are rates.

    Raises:
        DataError: too few runs for either stage.
    """
    of_compute = choose_form(
        forms, {"compute": compute}, loss, replicates=replicates, ceiling=np.inf
    )
    return Stages(
        of_compute.fit,
        fit_law(OfLoss(), {"loss": loss}, error, replicates, ceiling=ceiling),
    )
