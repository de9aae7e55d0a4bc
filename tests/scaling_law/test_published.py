"""The envelope fit gives the exponents that a study of OpenCLIP published for its own runs."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from caft.scaling_law import fit_power_law

RESULTS = (
    Path(__file__).resolve().parents[3] / "shared" / "data" / "scaling_openclip"
) / "zeroshot_results.csv"


@pytest.mark.skipif(not RESULTS.exists(), reason="the published results are not here")
@pytest.mark.parametrize(
    ("data", "benchmark", "score", "exponent"),
    [
        ("LAION", "imagenet1k", "acc1", -0.1109),
        ("WIT", "imagenet1k", "acc1", -0.1638),
        ("LAION", "mscoco_captions", "image_retrieval_recall@5", -0.0798),
        ("WIT", "mscoco_captions", "image_retrieval_recall@5", -0.0508),
    ],
)
def test_published_exponents(data: str, benchmark: str, score: str, exponent: float) -> None:
    with RESULTS.open(encoding="utf-8") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if row["downstream_dataset"] == benchmark and data in row["upstream_dataset"]
        ]
    fit = fit_power_law(
        [float(row["gmacs_total"]) for row in rows],
        [1 - float(row[score]) for row in rows],
        envelope_bins=5,
    )
    assert fit.exponent == pytest.approx(exponent, abs=0.005)
    assert fit["a"].low < -exponent < fit["a"].high
