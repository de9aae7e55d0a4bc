"""Whether the form that made the runs is chosen, and how long very many runs take.

Simulates studies of a known law, of 16 runs of which all are on the front but for chance, and
counts the form that `choose_form` takes for each; then times the fit of a table.

    python benchmarks/scaling_law_choice.py --studies 40 --runs 5000
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np
from scaling_law_coverage import STUDIES

from caft.scaling_law import choose_form, fit_form

FORMS = ("power", "saturating")
NOISES = (0.003, 0.01)
FEW = 2  # replicates: the choice is made by predictions, not by their intervals


def chosen(truth: str, noise: float, studies: int) -> int:
    """How many of so many studies the true form is chosen for."""
    inputs = STUDIES["saturating"].inputs
    law = STUDIES[truth].law(inputs)
    count = 0
    for seed in range(studies):
        error = law * np.exp(noise * np.random.default_rng(seed).normal(size=len(law)))
        count += choose_form(FORMS, inputs, error, replicates=FEW).chosen == truth
    return count


def seconds(runs: int) -> dict[str, float]:
    """How long laws of so many runs take, with all their intervals."""
    rng = np.random.default_rng(0)
    size, samples = 10 ** rng.uniform(6, 9, runs), 10 ** rng.uniform(7, 10, runs)
    error = STUDIES["size_samples"].law({"parameters": size, "samples": samples})
    error = error * np.exp(0.01 * rng.normal(size=runs))
    inputs = {"parameters": size, "samples": samples, "compute": 6 * size * samples}
    found = {}
    started = time.perf_counter()
    fit_form("size_samples", inputs, error)
    found["fit of size_samples"] = time.perf_counter() - started
    for label, forms in (("choice in compute", FORMS), ("choice in size", ("size_samples",))):
        started = time.perf_counter()
        choose_form(forms, inputs, error)
        found[label] = time.perf_counter() - started
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=40)
    parser.add_argument("--runs", type=int, default=5000)
    args = parser.parse_args()
    print("| truth | noise of a run | chosen |\n|---|---|---|")
    for truth in FORMS:
        for noise in NOISES:
            count = chosen(truth, noise, args.studies)
            print(f"| {truth} | {100 * noise:g}% | {count} of {args.studies} |", flush=True)
    print(f"\n| {args.runs:,} runs, {len(os.sched_getaffinity(0))} cores | seconds |\n|---|---|")
    for label, duration in seconds(args.runs).items():
        print(f"| {label} | {duration:.0f} |", flush=True)


if __name__ == "__main__":
    main()
