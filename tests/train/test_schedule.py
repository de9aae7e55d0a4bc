"""Learning rate and parameter groups."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests_support import tiny_config

import caft
from caft.errors import ConfigError
from pipelines.train.config import OptimizerConfig
from pipelines.train.schedule import learning_rate, parameter_groups


def rates_of(total_steps: int, **changes) -> list[float]:
    config = OptimizerConfig(**{"lr": 1.0, "warmup_steps": 10} | changes)
    return [learning_rate(step, total_steps, config) for step in range(total_steps + 1)]


def test_cosine_warms_up_linearly_peaks_and_ends_at_zero():
    rates = rates_of(100)
    assert rates[:10] == pytest.approx([0.1 * (n + 1) for n in range(10)])
    assert max(rates) == rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[10:]))


def test_cosine_ends_at_the_least_rate():
    rates = rates_of(100, min_lr=0.1)
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)


def test_cooldown_falls_over_the_last_steps_in_the_shape_asked_for():
    constant = rates_of(100, schedule="constant")
    assert set(constant[10:]) == {1.0}
    line = rates_of(100, schedule="constant_cooldown", cooldown_steps=20, cooldown_shape="linear")
    assert line[:81] == constant[:81]
    assert line[80:] == pytest.approx([1 - n / 20 for n in range(21)])
    root = rates_of(100, schedule="constant_cooldown", cooldown_fraction=0.2, min_lr=0.5)
    assert root[:81] == constant[:81]
    assert root[80:] == pytest.approx([0.5 + 0.5 * (1 - (n / 20) ** 0.5) for n in range(21)])


@given(
    st.integers(0, 30),
    st.integers(1, 50),
    st.integers(0, 200),
    st.sampled_from(["linear", "1-sqrt"]),
)
def test_a_trunk_at_a_constant_rate_serves_every_length(warmup, cooldown, plateau, shape):
    """Steps before the cool-down have the trunk's rate, whatever comes later; after it, rates fall
    and never leave [min_lr, lr]."""
    total = warmup + plateau + cooldown
    common = {"warmup_steps": warmup, "min_lr": 0.1}
    trunk = rates_of(10 * total, schedule="constant", **common)
    branch = rates_of(
        total, schedule="constant_cooldown", cooldown_steps=cooldown, cooldown_shape=shape, **common
    )
    start = total - cooldown
    assert branch[: start + 1] == trunk[: start + 1]
    assert all(later < earlier for earlier, later in itertools.pairwise(branch[start:]))
    assert branch[total] == pytest.approx(0.1)


def test_what_a_schedule_cannot_do_is_said():
    with pytest.raises(ValueError, match=r"min_lr 0\.1 is above lr 0\.01"):
        OptimizerConfig(lr=0.01, min_lr=0.1)
    with pytest.raises(ValueError, match="cooldown_steps 5 needs schedule constant_cooldown"):
        OptimizerConfig(cooldown_steps=5)
    with pytest.raises(ConfigError, match="cool-down of 95 do not fit into 100 steps"):
        rates_of(100, schedule="constant_cooldown", cooldown_steps=95)


def test_only_matrices_are_decayed():
    model = caft.create_model(tiny_config())
    decayed, plain = parameter_groups(model, 0.5)
    assert decayed["weight_decay"] == 0.5
    assert plain["weight_decay"] == 0.0
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert all(p.ndim < 2 for p in plain["params"])
    count = sum(p.numel() for group in (decayed, plain) for p in group["params"])
    assert count == sum(p.numel() for p in model.parameters())
