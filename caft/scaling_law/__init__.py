"""Scaling laws: fitted to finished runs, with honest intervals; predictions and advice from them.
Needs numpy and scipy alone. Also `python -m caft.scaling_law runs.csv --error COLUMN ...`."""

from caft.scaling_law.fit import Fit, fit_envelope, fit_form, fit_power_law

__all__ = ["Fit", "fit_envelope", "fit_form", "fit_power_law"]
