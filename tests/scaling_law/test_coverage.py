"""Intervals hold the truth: a short version of benchmarks/scaling_law_coverage.py."""

from __future__ import annotations

import pytest
from scaling_law_coverage import COOL_DOWNS, STUDIES, Study


@pytest.mark.parametrize(
    ("study", "count"),
    [
        (STUDIES["power"], 8),
        (STUDIES["saturating"], 4),
        (STUDIES["size_samples"], 4),
        (STUDIES["repetition"], 1),
    ],
    ids=list(STUDIES),
)
def test_intervals_hold_the_truth(study: Study, count: int) -> None:
    fits = [study.fit(seed, replicates=60) for seed in range(count)]
    inside = {
        (seed, name): fit[name].low <= true <= fit[name].high
        for name, true in study.truth.items()
        for seed, fit in enumerate(fits)
    }
    assert sum(inside.values()) >= 0.75 * len(inside), inside
    held = 0
    for seed, fit in enumerate(fits):
        run = fit.predict({name: [value] for name, value in study.beyond.items()})
        held += run.low[0] <= study.new_run(seed) <= run.high[0]
    assert held >= 0.75 * count


def test_intervals_allow_for_chance_that_trunks_share() -> None:
    true = COOL_DOWNS.truth["a"]
    exponents = [COOL_DOWNS.fit(seed, replicates=60)["a"] for seed in range(4)]
    assert sum(exponent.low <= true <= exponent.high for exponent in exponents) >= 3
