"""Checks what is to be fitted: one clear error for runs that no law can be fitted to.
First step of a fit; also says what a design cannot tell, whatever its errors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from caft.errors import DataError
from caft.scaling_law.form import ComputeForm, Form

Array = NDArray[np.float64]

MIN_FRONTIER_POINTS = 5  # fewer leave a law's exponent to two or three runs
DECADES_FOR_A_LAW = 1.5
SAME = 1e-9  # relative; values nearer than this are one


def form_inputs(form: Form, inputs: Mapping[str, ArrayLike]) -> dict[str, Array]:
    """The inputs that `form` depends on, as arrays.

    Raises:
        DataError: one of them is not there.
    """
    missing = [name for name in form.inputs if name not in inputs]
    if missing:
        raise DataError(f"{missing[0]}: not given, but {form.formula} depends on it")
    return {name: np.atleast_1d(np.asarray(inputs[name], float)) for name in form.inputs}


def new_inputs(form: Form, inputs: Mapping[str, ArrayLike]) -> dict[str, Array]:
    """As `form_inputs`, of runs to be predicted; what is unlimited may be infinite.

    Raises:
        DataError: one of them is not there, or not a positive number.
    """
    arrays = form_inputs(form, inputs)
    for name, column in arrays.items():
        if not (column > 0).all():
            raise DataError(
                f"{name}: {column.tolist()} to predict at; a law needs positive numbers"
            )
    return arrays


def check_numbers(columns: Mapping[str, ArrayLike]) -> dict[str, Array]:
    """Columns of numbers of n runs, (n,) each.

    Raises:
        DataError: none at all, other lengths, or one that is not a positive number.
    """
    arrays = {name: np.asarray(column, dtype=np.float64) for name, column in columns.items()}
    shapes = {name: column.shape for name, column in arrays.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise DataError(f"columns of other shapes than one number for each run: {shapes}")
    for name, column in arrays.items():
        bad = np.flatnonzero(~(np.isfinite(column) & (column > 0)))
        if len(bad):
            raise DataError(
                f"{name}: run {bad[0]} has {column[bad[0]]:g}, a law needs positive numbers; "
                f"leave out or measure again the {len(bad)} such runs of {len(column)}"
            )
    return arrays


def check_runs(
    arrays: Mapping[str, Array], error: Array, groups: ArrayLike | None
) -> NDArray[np.intp]:
    """The group (n,) of each run, from 0; each its own where none are given.

    Raises:
        DataError: one run twice, or not one label for each run.
    """
    runs = len(error)
    if groups is None:
        labels = np.arange(runs)
    else:
        if np.shape(groups) != (runs,):
            raise DataError(f"groups: {np.shape(groups)} labels for {runs} runs; give one for each")
        labels = np.unique(np.asarray(groups).astype(str), return_inverse=True)[1]
    table = np.stack([*arrays.values(), error], axis=1)
    if groups is not None:
        table = np.concatenate([table, labels[:, None]], axis=1)
    _, first, inverse = np.unique(table, axis=0, return_index=True, return_inverse=True)
    again = np.flatnonzero(first[inverse] != np.arange(runs))
    if len(again):
        one = int(first[inverse[again[0]]])
        raise DataError(
            f"runs {one} and {again[0]} are the same point, which would count twice; "
            f"remove the {len(again)} duplicates, or name their seeds as groups"
        )
    return labels


def check_enough(form: Form, arrays: Mapping[str, Array]) -> None:
    """Raises DataError for fewer points than parameters + 1, or an input that never varies."""
    needed, points = len(form.parameters) + 1, len(arrays[form.inputs[0]])
    if points < needed:
        more = "runs, or bins of the envelope" if isinstance(form, ComputeForm) else "runs"
        raise DataError(
            f"{points} point{'s' if points != 1 else ''} to fit, but {form.formula} has "
            f"{needed - 1} parameters and needs {needed} at least; add {more}"
        )
    for name in form.inputs:
        column = arrays[name]
        if np.ptp(np.log(column)) < SAME and name != "unique_samples":
            raise DataError(f"{name}: {column[0]:g} in all runs; a law in it needs several values")


def design_problems(form: Form, arrays: Mapping[str, Array]) -> tuple[str, ...]:
    """What these runs cannot tell, whatever their errors."""
    if not isinstance(form, ComputeForm):
        return ()
    found = []
    compute = arrays["compute"]
    if len(compute) < MIN_FRONTIER_POINTS:
        found.append(
            f"{len(compute)} points on the envelope: fewer than {MIN_FRONTIER_POINTS} "
            "leave the law to single runs"
        )
    decades = float(np.log10(compute.max() / compute.min()))
    if decades < DECADES_FOR_A_LAW:
        found.append(f"{decades:.1f} decades of compute: {DECADES_FOR_A_LAW} at least are wanted")
    return tuple(found)
