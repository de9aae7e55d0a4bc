"""How often the 95% intervals of caft.scaling_law hold the truth: 100 simulated studies a form.

Prints a table: for each parameter in how many studies its interval holds the truth, in how many it
was flagged instead (which counts as a miss), and the median width of the interval over the truth.
Last, for each study, how often the interval of a prediction holds a new run with ten times the
largest compute. A second table has what other ways of making the intervals would give.

    python benchmarks/scaling_law_coverage.py [--studies 100]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from caft.scaling_law import Fit, fit_envelope, fit_form
from caft.scaling_law.form import Array
from caft.scaling_law.forms import FORMS
from caft.scaling_law.solve import INTERVAL

RUN_NOISE = 0.01  # standard deviation of log error: what another seed changes
TRUNK_NOISE = 0.01  # of all cool-downs of one trunk together
RUNS_PER_BIN = 4  # of an envelope
DETOURS = (0.02, 0.3)  # how much worse than the best for their compute the other runs are
REPLICATES = 400


@dataclass(frozen=True)
class Study:
    """A simulated study: what it runs, and the law behind it."""

    form: str
    truth: Mapping[str, float]
    inputs: Mapping[str, Array]  # compute-optimal runs, or all runs of a law in size and data
    beyond: Mapping[str, float]  # ten times the largest compute
    envelope_bins: int = 0
    trunk: str | None = None  # runs that have this input in common share chance
    grouped: bool = True

    @property
    def name(self) -> str:
        return f"{self.form}, cool-downs" if self.trunk else self.form

    def law(self, inputs: Mapping[str, Array]) -> Array:
        """The true error of runs with `inputs` (n,)."""
        return FORMS[self.form].error(np.array([list(self.truth.values())]), inputs)[0]

    def runs(self, seed: int) -> tuple[dict[str, Array], Array]:
        """Inputs and measured errors of all runs, with other noise for each seed."""
        rng = np.random.default_rng(seed)
        inputs, error = dict(self.inputs), self.law(self.inputs)
        if self.envelope_bins:
            best = np.arange(RUNS_PER_BIN * len(error)) % RUNS_PER_BIN == 0
            inputs = {name: np.repeat(column, RUNS_PER_BIN) for name, column in inputs.items()}
            detours = np.where(best, 0.0, rng.uniform(*DETOURS, len(best)))
            error = np.repeat(error, RUNS_PER_BIN) * (1 + detours)
        if self.trunk:
            trunks = np.unique(inputs[self.trunk], return_inverse=True)[1]
            error = error * np.exp(TRUNK_NOISE * rng.normal(size=trunks.max() + 1)[trunks])
        return inputs, error * np.exp(RUN_NOISE * rng.normal(size=len(error)))

    def fit(self, seed: int, replicates: int = REPLICATES) -> Fit:
        inputs, error = self.runs(seed)
        if self.envelope_bins:
            return fit_envelope(self.form, inputs["compute"], error, self.envelope_bins, replicates)
        groups = inputs[self.trunk] if self.trunk and self.grouped else None
        return fit_form(self.form, inputs, error, replicates, groups, seed)

    def new_run(self, seed: int) -> float:
        """The error of one run of ten times the largest compute."""
        rng = np.random.default_rng([seed, 1])
        noise = np.hypot(RUN_NOISE, TRUNK_NOISE) if self.trunk else RUN_NOISE
        inputs = {name: np.array([value]) for name, value in self.beyond.items()}
        return float(self.law(inputs)[0] * np.exp(noise * rng.normal()))


def grid(*axes: Array) -> tuple[Array, ...]:
    """All combinations of the axes' values, one column for each axis."""
    return tuple(axis.ravel() for axis in np.meshgrid(*axes))


SIZES, SAMPLES = grid(np.geomspace(1e7, 1e9, 6), np.geomspace(1e8, 1e10, 6))
REPEATED_SIZES, UNIQUE, EPOCHS = grid(
    np.geomspace(1e6, 1e9, 5), np.geomspace(3e5, 3e7, 3), np.array([1.0, 4.0, 16.0, 64.0])
)
STUDIES = {
    "power": Study(
        "power",
        {"A": 30.0, "a": 0.1},
        {"compute": np.geomspace(1e18, 1e21, 10)},
        {"compute": 1e22},
        envelope_bins=5,
    ),
    "saturating": Study(
        "saturating",
        {"A": 2e5, "a": 0.3, "B": 3e18, "E": 0.15},
        {"compute": np.geomspace(1e18, 1e22, 16)},
        {"compute": 1e23},
        envelope_bins=16,
    ),
    "size_samples": Study(
        "size_samples",
        {"E": 0.2, "A": 60.0, "a": 0.3, "B": 700.0, "b": 0.35},
        {"parameters": SIZES, "samples": SAMPLES},
        {"parameters": 3e9, "samples": 3e10},
    ),
    "repetition": Study(
        "repetition",
        {"E": 0.2, "A": 60.0, "a": 0.3, "B": 105.0, "b": 0.35, "R_D": 12.0, "R_N": 5.0},
        {"parameters": REPEATED_SIZES, "samples": UNIQUE * EPOCHS, "unique_samples": UNIQUE},
        {"parameters": 3e9, "samples": 6e9, "unique_samples": 1e8},
    ),
}
COOL_DOWNS = replace(STUDIES["size_samples"], trunk="parameters")


def parameter_rows(study: Study, count: int) -> list[str]:
    """Lines of the first table, of `count` repetitions of the study."""
    fits = [study.fit(seed) for seed in range(count)]
    rows = []
    for name, true in study.truth.items():
        found = [fit[name] for fit in fits]
        inside = sum(e.identified and e.low <= true <= e.high for e in found)
        flagged = sum(not e.identified for e in found)
        width = 100 * np.median([(e.high - e.low) / true for e in found])
        rows.append(f"{name} | {true:g} | {inside} of {count} | {flagged} | {width:.0f}%")
    held, widths = 0, []
    for seed, fit in enumerate(fits):
        prediction = fit.predict({name: [value] for name, value in study.beyond.items()})
        low, high = prediction.low[0], prediction.high[0]
        held += low <= study.new_run(seed) <= high
        widths.append(100 * (high - low) / prediction.value[0])
    rows.append(f"new run | | {held} of {count} | | {np.median(widths):.0f}%")
    points = len(fits[0].error)
    return [f"| {study.name} | {points} | {row} |" for row in rows]


def resampled_exponent(study: Study, seed: int) -> tuple[float, float]:
    """The interval of a power law's exponent if the runs of its envelope were resampled."""
    fit = study.fit(seed, replicates=1)
    compute, error = np.log(fit.inputs["compute"]), np.log(fit.error)
    rng, slopes = np.random.default_rng(seed), []
    while len(slopes) < REPLICATES:
        drawn = rng.integers(0, len(compute), len(compute))
        if len(set(drawn)) > 1:
            slopes.append(-np.polyfit(compute[drawn], error[drawn], 1)[0])
    low, high = np.percentile(slopes, INTERVAL)
    return float(low), float(high)


def fitted_exponent(study: Study, seed: int) -> tuple[float, float]:
    """Its interval as it is made."""
    exponent = study.fit(seed)["a"]
    return exponent.low, exponent.high


def comparison_row(
    label: str, study: Study, count: int, interval: Callable[[Study, int], tuple[float, float]]
) -> str:
    """A line of the second table."""
    true = study.truth["a"]
    found = [interval(study, seed) for seed in range(count)]
    inside = sum(low <= true <= high for low, high in found)
    width = 100 * np.median([(high - low) / true for low, high in found])
    return f"| {study.name} | {label} | {inside} of {count} | {width:.0f}% |"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=100, help="of each form (100)")
    count = parser.parse_args(argv).studies
    print("| study | points | parameter | truth | inside | flagged | width |")
    print("|---|---|---|---|---|---|---|")
    for study in (*STUDIES.values(), COOL_DOWNS):
        print("\n".join(parameter_rows(study, count)), flush=True)
    print("\n| study | intervals of the exponent a | inside | width |\n|---|---|---|---|")
    for label, study, interval in (
        ("as they are made", STUDIES["power"], fitted_exponent),
        ("from resampled runs", STUDIES["power"], resampled_exponent),
        ("trunks named as groups", COOL_DOWNS, fitted_exponent),
        ("not named", replace(COOL_DOWNS, grouped=False), fitted_exponent),
    ):
        print(comparison_row(label, study, count, interval), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
