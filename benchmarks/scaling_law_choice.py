"""Whether the form that made the runs is chosen, and how long very many runs take.

Simulates studies of a known law, of 16 runs of which all are on the front but for chance, and
counts the form that `choose_form` takes for each; then times the fit of a table.

    python benchmarks/scaling_law_choice.py --studies 40 --runs 5000
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from scaling_law_coverage import STUDIES

from caft.scaling_law import choose_form, fit_form
from caft.scaling_law.__main__ import main as study

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


def seconds(runs: int) -> dict[str, tuple[float, float]]:
    """How long laws of so many runs take, with all their intervals, and how much of that the
    processor did for them: what else the machine does counts for the first alone."""
    rng = np.random.default_rng(0)
    size, samples = 10 ** rng.uniform(6, 9, runs), 10 ** rng.uniform(7, 10, runs)
    error = STUDIES["size_samples"].law({"parameters": size, "samples": samples})
    error = error * np.exp(0.01 * rng.normal(size=runs))
    inputs = {"parameters": size, "samples": samples, "compute": 6 * size * samples}
    return {
        "fit of size_samples": timed(lambda: fit_form("size_samples", inputs, error)),
        "choice in compute": timed(lambda: choose_form(FORMS, inputs, error)),
        "choice in size": timed(lambda: choose_form(("size_samples",), inputs, error)),
        "the command, two families": timed(lambda: command(inputs, error)),
    }


def timed(call: Callable[[], object]) -> tuple[float, float]:
    started = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - started[0], time.process_time() - started[1]


def command(inputs: dict[str, np.ndarray], error: np.ndarray) -> None:
    """A whole study, from the table to the report."""
    with TemporaryDirectory() as folder:
        table = Path(folder, "runs.csv")
        with table.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*inputs, "error", "family"])
            families = np.arange(len(error)) % 2
            writer.writerows(zip(*inputs.values(), error, families, strict=True))
        named = [word for name in inputs for word in (f"--{name}", name)]
        more = ["--error", "error", "--family", "family", "--output", str(Path(folder, "law"))]
        with redirect_stdout(io.StringIO()):
            assert study([str(table), *named, *more]) == 0


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
    cores = len(os.sched_getaffinity(0))
    print(f"\n| {args.runs:,} runs, {cores} cores | seconds | of the processor |\n|---|---|---|")
    for label, (wall, processor) in seconds(args.runs).items():
        print(f"| {label} | {wall:.0f} | {processor:.0f} |", flush=True)


if __name__ == "__main__":
    main()
