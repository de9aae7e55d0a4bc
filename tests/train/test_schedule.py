"""Learning rate and parameter groups."""

import itertools

import pytest
from tests_support import tiny_config

import caft
from pipelines.train.config import OptimizerConfig
from pipelines.train.schedule import learning_rate, parameter_groups


def test_rate_warms_up_linearly_peaks_and_ends_at_zero():
    config = OptimizerConfig(lr=1.0, warmup_steps=10)
    rates = [learning_rate(step, 100, config) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * (n + 1) for n in range(10)])
    assert max(rates) == rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[10:]))


def test_only_matrices_are_decayed():
    model = caft.create_model(tiny_config())
    decayed, plain = parameter_groups(model, 0.5)
    assert decayed["weight_decay"] == 0.5
    assert plain["weight_decay"] == 0.0
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert all(p.ndim < 2 for p in plain["params"])
    count = sum(p.numel() for group in (decayed, plain) for p in group["params"])
    assert count == sum(p.numel() for p in model.parameters())
