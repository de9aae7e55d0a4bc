"""Simulated runs of known laws, for the tests of caft.scaling_law."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from caft.scaling_law.forms import FORMS, Array

POWER = {"A": 30.0, "a": 0.1}
SATURATING = {"A": 2e5, "a": 0.3, "B": 3e18, "E": 0.15}
SIZE_SAMPLES = {"E": 0.2, "A": 60.0, "a": 0.3, "B": 700.0, "b": 0.35}
REPETITION = {"E": 0.2, "A": 60.0, "a": 0.3, "B": 105.0, "b": 0.35, "R_D": 12.0, "R_N": 5.0}
TRUTHS = {
    "power": POWER,
    "saturating": SATURATING,
    "size_samples": SIZE_SAMPLES,
    "repetition": REPETITION,
}


def law(form: str, inputs: Mapping[str, Array]) -> Array:
    return FORMS[form].error(np.array([list(TRUTHS[form].values())]), inputs)[0]


def design(form: str) -> dict[str, Array]:
    """Inputs of a study that identifies `form`."""
    if form in ("power", "saturating"):
        return {"compute": np.geomspace(1e18, 1e22, 16)}
    if form == "size_samples":
        size, samples = np.meshgrid(np.geomspace(1e7, 1e9, 6), np.geomspace(1e8, 1e10, 6))
        return {"parameters": size.ravel(), "samples": samples.ravel()}
    size, unique, epochs = np.meshgrid(
        np.geomspace(1e6, 1e9, 5), np.geomspace(3e5, 3e7, 3), [1.0, 4.0, 16.0, 64.0]
    )
    return {
        "parameters": size.ravel(),
        "samples": (unique * epochs).ravel(),
        "unique_samples": unique.ravel(),
    }
