"""The envelope fit gives the exponents that a study of OpenCLIP published for its own runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from scaling_law_published import PUBLISHED, published_fits

RESULTS = (
    Path(__file__).resolve().parents[3] / "shared" / "data" / "scaling_openclip"
) / "zeroshot_results.csv"


@pytest.mark.skipif(not RESULTS.exists(), reason="the published results are not here")
def test_published_exponents() -> None:
    fits = list(published_fits(RESULTS))
    assert len(fits) == len(PUBLISHED)
    for _, _, exponent, _, fit in fits:
        assert fit.exponent == pytest.approx(exponent, abs=0.005)
        assert fit["a"].low < -exponent < fit["a"].high
