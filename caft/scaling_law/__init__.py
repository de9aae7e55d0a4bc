"""Scaling laws: fitted to finished runs, with honest intervals; predictions and advice from them.
Needs no model and no cluster. Also `python -m caft.scaling_law runs.csv --error COLUMN ...`."""

from caft.scaling_law.choice import Choice, HeldOut, choose_form, hold_out
from caft.scaling_law.compare import Comparison, compare
from caft.scaling_law.fit import fit_envelope, fit_form, fit_power_law
from caft.scaling_law.fitted import Band, Estimate, Fit
from caft.scaling_law.optimum import Cost, Optimum, compute_optimal, growth, measure_cost

__all__ = [
    "Band",
    "Choice",
    "Comparison",
    "Cost",
    "Estimate",
    "Fit",
    "HeldOut",
    "Optimum",
    "choose_form",
    "compare",
    "compute_optimal",
    "fit_envelope",
    "fit_form",
    "fit_power_law",
    "growth",
    "hold_out",
    "measure_cost",
]
