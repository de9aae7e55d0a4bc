"""The envelope fit on published runs: exponents of OpenCLIP models against those of their authors.

Takes zeroshot_results.csv of the repository LAION-AI/scaling-laws-openclip (Cherti et al.,
Reproducible scaling laws for contrastive language-image learning, CVPR 2023).

    python benchmarks/scaling_law_published.py zeroshot_results.csv
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

from caft.scaling_law import Fit, fit_power_law

BINS = 5
PUBLISHED = (  # training data, benchmark, score, exponent
    ("LAION", "imagenet1k", "acc1", -0.1109),
    ("WIT", "imagenet1k", "acc1", -0.1638),
    ("LAION", "mscoco_captions", "image_retrieval_recall@5", -0.0798),
    ("WIT", "mscoco_captions", "image_retrieval_recall@5", -0.0508),
)


def published_fits(results: Path) -> Iterator[tuple[str, str, float, int, Fit]]:
    """Training data, benchmark, published exponent, number of runs and our fit of each."""
    with results.open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    for data, benchmark, score, exponent in PUBLISHED:
        rows = [
            row
            for row in table
            if row["downstream_dataset"] == benchmark and data in row["upstream_dataset"]
        ]
        compute = [float(row["gmacs_total"]) for row in rows]
        fit = fit_power_law(compute, [1 - float(row[score]) for row in rows], BINS)
        yield data, benchmark, exponent, len(rows), fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="zeroshot_results.csv")
    print("| data | error on | runs | envelope | exponent | 95% interval | published |")
    print("|---|---|---|---|---|---|---|")
    for data, benchmark, published, runs, fit in published_fits(parser.parse_args().results):
        interval = f"{-fit['a'].high:.3f} to {-fit['a'].low:.3f}"
        cells = (data, benchmark, runs, len(fit.error), f"{fit.exponent:.4f}", interval, published)
        print("| " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
