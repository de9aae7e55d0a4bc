"""What is derived from fits: held-out runs, the choice of a form, optima, families compared."""

from __future__ import annotations

import numpy as np
import pytest
from scaling_law_coverage import STUDIES
from scipy.optimize import minimize_scalar

from caft.errors import DataError, UnidentifiedError
from caft.scaling_law import (
    choose_form,
    compare,
    compute_optimal,
    fit_form,
    fit_power_law,
    growth,
    hold_out,
    measure_cost,
)

FEW = 100
COMPUTE = np.geomspace(1e18, 1e21, 12)


def test_the_largest_runs_are_predicted_from_the_others() -> None:
    inputs, error = STUDIES["size_samples"].runs(seed=2)
    held_out = hold_out("size_samples", inputs, error, replicates=400)
    work = inputs["parameters"] * inputs["samples"]
    assert set(error[np.argsort(work)[-6:]]) <= set(held_out.error)
    assert held_out.reach.min() > 1
    assert held_out.log_error < 0.05
    assert held_out.inside >= 0.7 * len(held_out.error)


def test_held_out_runs_have_no_part_in_their_prediction() -> None:
    error = 30 * COMPUTE**-0.1
    error[6:] *= 1.5  # all runs beyond the first cut
    held_out = hold_out("power", {"compute": COMPUTE}, error, envelope_bins=0, replicates=FEW)
    first = held_out.prediction.value[:6]
    assert first == pytest.approx(error[6:] / 1.5, rel=1e-3)
    assert "lie outside their 95% intervals" in str(held_out.problem)


@pytest.mark.parametrize("truth", ["power", "saturating"])
def test_the_form_that_made_the_runs_is_chosen(truth: str) -> None:
    study = STUDIES[truth]
    error = study.law(STUDIES["saturating"].inputs)
    error *= np.exp(0.003 * np.random.default_rng(1).normal(size=len(error)))
    inputs = STUDIES["saturating"].inputs
    choice = choose_form(["saturating", "power"], inputs, error, None, 0, FEW)
    assert choice.chosen == truth
    assert choice.fit.form.name == truth
    assert set(choice.held_out) == {"power", "saturating"}


def test_every_form_is_judged_on_the_same_runs_of_the_front() -> None:
    study = STUDIES["saturating"]
    inputs = {"compute": np.tile(study.inputs["compute"], 2)}
    error = study.law(inputs)
    error[16:] *= 1.3  # not on the front
    choice = choose_form(["power", "saturating"], inputs, error, replicates=FEW)
    assert len(choice.fit.error) == 16
    one, other = choice.held_out.values()
    assert one.error.tolist() == other.error.tolist()
    assert choice.chosen == "saturating"


def test_a_form_with_too_few_points_is_refused_and_said() -> None:
    compute = np.geomspace(1e18, 1e21, 4)
    choice = choose_form(["power", "saturating"], {"compute": compute}, 30 * compute**-0.1)
    assert choice.chosen == "power"
    assert "4 parameters and needs 5" in choice.refused["saturating"]
    with pytest.raises(DataError, match="1 point to fit"):
        choose_form(["power", "saturating"], {"compute": [1e18]}, [0.4])


def test_the_optimum_of_a_budget_is_where_the_law_is_least() -> None:
    for name in ("size_samples", "repetition"):
        study = STUDIES[name]
        fit = fit_form(name, study.inputs, study.law(study.inputs), 20)
        cost = measure_cost(
            6 * study.inputs["parameters"] * study.inputs["samples"],
            study.inputs["parameters"],
            study.inputs["samples"],
        )
        assert (cost.factor, cost.spread) == (pytest.approx(6), pytest.approx(1))
        optimum = compute_optimal(fit, [1e17, 1e19], cost, unique_samples=1e7)
        for place, budget in enumerate(optimum.compute):

            def error(log_size: float, work: float = budget / 6, study=study) -> float:
                inputs = {"parameters": np.exp(log_size), "samples": work / np.exp(log_size)}
                inputs = {key: np.array([value]) for key, value in inputs.items()}
                return study.law(inputs | {"unique_samples": np.array([1e7])})[0]

            best = minimize_scalar(error, bounds=(np.log(1e4), np.log(1e12)), method="bounded")
            assert optimum.parameters.value[place] == pytest.approx(np.exp(best.x), rel=0.02)
            assert optimum.error.value[place] == pytest.approx(best.fun, rel=1e-3)
            assert optimum.samples.value[place] * optimum.parameters.value[place] == pytest.approx(
                budget / 6
            )


def test_an_optimum_has_intervals_and_says_where_it_leaves_the_runs() -> None:
    study = STUDIES["size_samples"]
    fit = study.fit(seed=0)
    cost = measure_cost([6.0, 6.0], [1.0, 1.0], [1.0, 1.0])
    exact = fit_form("size_samples", study.inputs, study.law(study.inputs), 2)
    truth = compute_optimal(exact, [1e18, 1e23], cost)
    optimum = compute_optimal(fit, [1e18, 1e23], cost)
    assert np.all(optimum.parameters.low < truth.parameters.value)
    assert np.all(truth.parameters.value < optimum.parameters.high)
    assert optimum.beyond.tolist() == [False, True]
    of_size, of_samples = growth(fit)
    assert of_size.low[0] < 0.35 / 0.65 < of_size.high[0]
    assert of_size.value + of_samples.value == pytest.approx(1)
    uneven = measure_cost([6.0, 12.0, 18.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    assert "differs between runs by a factor of 1.57" in str(uneven.problem)


def test_no_optimum_from_what_the_runs_do_not_tell() -> None:
    rng = np.random.default_rng(0)
    size, samples = rng.uniform(1e8, 1.3e8, 12), np.geomspace(1e8, 1e10, 12)
    error = (0.3 + 500 * samples**-0.35) * np.exp(0.01 * rng.normal(size=12))
    fit = fit_form("size_samples", {"parameters": size, "samples": samples}, error, FEW)
    cost = measure_cost([6.0], [1.0], [1.0])
    with pytest.raises(UnidentifiedError, match="no optimum can be recommended: A "):
        compute_optimal(fit, [1e20], cost)
    with pytest.raises(DataError, match="power: no optimum"):
        compute_optimal(fit_power_law(COMPUTE, COMPUTE**-0.1), [1e20], cost)


def test_the_compute_that_makes_up_for_a_worse_family() -> None:
    rng = np.random.default_rng(0)
    noise = np.exp(0.003 * rng.normal(size=(2, 12)))
    better = fit_power_law(COMPUTE, 30 * COMPUTE**-0.1 * noise[0], 0)
    worse = fit_power_law(COMPUTE, 33 * COMPUTE**-0.1 * noise[1], 0)
    true = 1.1 ** (1 / 0.1)
    there = compare(better, worse, [1e20, 1e22])
    assert there.multiple.low[0] < true < there.multiple.high[0]
    assert there.ratio.value == pytest.approx([1 / 1.1] * 2, rel=0.01)
    assert there.apart.all()
    assert there.beyond.tolist() == [False, True]
    back = compare(worse, better, [1e20])
    assert back.multiple.value[0] == pytest.approx(1 / there.multiple.value[0], rel=0.1)


def test_equal_families_are_not_told_apart() -> None:
    told = 0
    for seed in range(20):
        noise = np.exp(0.01 * np.random.default_rng(seed).normal(size=(2, 12)))
        fits = [fit_power_law(COMPUTE, 30 * COMPUTE**-0.1 * n, 0, 200) for n in noise]
        told += bool(compare(*fits, [1e20]).apart[0])
    assert told <= 3


def test_a_family_that_levels_off_never_makes_up() -> None:
    study = STUDIES["saturating"]
    inputs = study.inputs
    level = fit_form("saturating", inputs, study.law(inputs), FEW)
    good = fit_form("power", inputs, 0.9 * (inputs["compute"] / 1e18) ** -0.25, FEW)
    comparison = compare(good, level, [1e22])
    assert comparison.multiple.value[0] == np.inf
    assert comparison.ratio.value[0] < 1
    with pytest.raises(DataError, match="laws in compute alone"):
        compare(good, STUDIES["size_samples"].fit(0, replicates=2), [1e20])
