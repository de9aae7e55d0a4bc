"""How often the 95% intervals of caft.scaling_law hold the truth: 100 simulated studies a form.

Prints a table: for each parameter the share of studies whose interval holds it, how often it was
flagged instead (which counts as a miss), and the median width of the interval. Last, for each form,
how often the interval of a prediction holds a new run with ten times the largest compute.

    python benchmarks/scaling_law_coverage.py [--studies 100]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from caft.scaling_law import Fit, fit_envelope, fit_form
from caft.scaling_law.forms import FORMS, Array

NOISE = 0.01  # standard deviation of log error: what another seed changes
REPLICATES = 400
DETOURS = (0.0, 0.04, 0.1, 0.3)  # how much worse than the best for their compute runs are


@dataclass(frozen=True)
class Study:
    """A simulated study: what it runs, and the law behind it."""

    form: str
    truth: Mapping[str, float]
    inputs: Mapping[str, Array]  # compute-optimal runs, or all runs of a law in size and data
    largest: Mapping[str, float]  # ten times the largest compute
    envelope_bins: int = 0

    def law(self, inputs: Mapping[str, Array]) -> Array:
        return FORMS[self.form].error(np.array([list(self.truth.values())]), inputs)[0]

    def fit(self, seed: int) -> tuple[Fit, float]:
        """The study with other noise for each seed: its fit, and one run of the largest size."""
        rng = np.random.default_rng(seed)
        error = self.law(self.inputs)
        beyond = {name: np.array([value]) for name, value in self.largest.items()}
        new_run = float(self.law(beyond)[0] * np.exp(NOISE * rng.normal()))
        if not self.envelope_bins:
            error = error * np.exp(NOISE * rng.normal(size=len(error)))
            return fit_form(self.form, self.inputs, error, REPLICATES, seed), new_run
        compute = np.repeat(self.inputs["compute"], len(DETOURS))
        error = np.repeat(error, len(DETOURS)) * np.tile(1 + np.array(DETOURS), len(error))
        error *= np.exp(NOISE * rng.normal(size=len(error)))
        return fit_envelope(self.form, compute, error, self.envelope_bins, REPLICATES), new_run


def grid(*axes: Array) -> tuple[Array, ...]:
    return tuple(axis.ravel() for axis in np.meshgrid(*axes))


def studies() -> list[Study]:
    compute = np.geomspace(1e18, 1e21, 10)
    size, samples = grid(np.geomspace(2e7, 6e8, 5), np.geomspace(1e8, 1e10, 5))
    sizes, unique, epochs = grid(
        np.geomspace(2e7, 2e9, 5), np.geomspace(3e6, 1e8, 3), np.array([1.0, 4.0, 16.0, 64.0])
    )
    fitted = {"E": 0.2, "A": 60.0, "a": 0.3, "B": 700.0, "b": 0.35}
    return [
        Study("power", {"A": 30.0, "a": 0.1}, {"compute": compute}, {"compute": 1e22}, 5),
        Study(
            "saturating",
            {"A": 2e5, "a": 0.3, "B": 3e18, "E": 0.15},
            {"compute": np.geomspace(1e18, 1e22, 16)},
            {"compute": 1e23},
            16,
        ),
        Study(
            "size_samples",
            fitted,
            {"parameters": size, "samples": samples},
            {"parameters": 2e9, "samples": 3e10},
        ),
        Study(
            "repetition",
            fitted | {"R_D": 12.0, "R_N": 5.0},
            {"parameters": sizes, "samples": unique * epochs, "unique_samples": unique},
            {"parameters": 6e9, "samples": 2e10, "unique_samples": 1e8},
        ),
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=100, help="of each form (100)")
    count = parser.parse_args(argv).studies
    print("| form | points | parameter | truth | inside | flagged | median width | s a study |")
    print("|---|---|---|---|---|---|---|---|")
    for study in studies():
        started = time.perf_counter()
        results = [study.fit(seed) for seed in range(count)]
        seconds = (time.perf_counter() - started) / count
        points = len(results[0][0].error)
        for name, true in study.truth.items():
            found = [fit[name] for fit, _ in results]
            inside = sum(e.identified and e.low <= true <= e.high for e in found)
            flagged = sum(not e.identified for e in found)
            width = np.median([(e.high - e.low) / true for e in found])
            print(
                f"| {study.form} | {points} | {name} | {true:g} | {inside} of {count} | {flagged} "
                f"| {100 * width:.0f}% | {seconds:.2f} |"
            )
        held, widths = 0, []
        for fit, new_run in results:
            beyond = {name: [value] for name, value in study.largest.items()}
            prediction = fit.predict(beyond)
            held += prediction.low[0] <= new_run <= prediction.high[0]
            widths.append((prediction.high[0] - prediction.low[0]) / new_run)
        print(
            f"| {study.form} | {points} | a run of 10 x the compute | | {held} of {count} | "
            f"| {100 * np.median(widths):.0f}% | |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
