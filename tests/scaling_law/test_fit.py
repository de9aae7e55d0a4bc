"""Laws are recovered, whatever the units and the order of runs; unknown parameters are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scaling_law_coverage import STUDIES
from scipy.optimize import least_squares

from caft.errors import DataError, UnidentifiedError
from caft.scaling_law import fit_envelope, fit_form, fit_power_law

POWER = STUDIES["power"].truth
TENFOLD = {"compute": [1e22]}
FEW = 50  # replicates, where intervals are not what is tested


def design(form: str) -> dict[str, np.ndarray]:
    return dict(STUDIES[form].inputs)


def law(form: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
    return STUDIES[form].law(inputs)


def noisy(form: str, seed: int, noise: float = 0.01) -> np.ndarray:
    errors = law(form, design(form))
    return errors * np.exp(noise * np.random.default_rng(seed).normal(size=len(errors)))


@pytest.mark.parametrize("form", STUDIES)
def test_exact_runs_give_back_their_law(form: str) -> None:
    fit = fit_form(form, design(form), law(form, design(form)), FEW)
    for name, true in STUDIES[form].truth.items():
        assert fit[name].value == pytest.approx(true, rel=1e-3)
    assert np.abs(fit.residuals).max() < 1e-6


@pytest.mark.parametrize("form", ["saturating", "size_samples"])
def test_no_other_solver_finds_a_better_fit(form: str) -> None:
    inputs, errors = design(form), noisy(form, 3)
    errors[4] *= 1.3  # one run went wrong
    fit = fit_form(form, inputs, errors, FEW)

    def residuals(theta: np.ndarray) -> np.ndarray:
        return np.log(fit.form.error(np.exp(theta)[None], inputs)[0] / errors)

    def objective(left: np.ndarray) -> float:
        size = np.abs(left)
        delta = fit.threshold
        return np.where(size < delta, size**2 / 2, delta * (size - delta / 2)).sum()

    starts = [np.log(fit.values), np.log(list(STUDIES[form].truth.values()))]
    others = [
        least_squares(residuals, start, loss="huber", f_scale=fit.threshold, x_scale="jac")
        for start in starts
    ]
    best = min(objective(residuals(other.x)) for other in others)
    assert objective(fit.residuals) <= best * (1 + 1e-4)


def test_one_bad_run_hardly_moves_the_law() -> None:
    compute = np.geomspace(1e18, 1e21, 12)
    errors = law("power", {"compute": compute})
    errors[7] *= 2
    assert fit_power_law(compute, errors, 0).exponent == pytest.approx(-POWER["a"], abs=0.005)


@settings(max_examples=5, deadline=None)
@given(
    unit=st.floats(1e-18, 1e6),
    height=st.floats(0.1, 10),
    form=st.sampled_from(["power", "saturating"]),
    seed=st.integers(0, 100),
)
def test_units_change_nothing_but_units(unit: float, height: float, form: str, seed: int) -> None:
    compute, errors = design(form)["compute"], noisy(form, seed)
    one = fit_form(form, {"compute": compute}, errors, FEW)
    other = fit_form(form, {"compute": compute * unit}, errors * height, FEW)
    assert other["a"].best == pytest.approx(one["a"].best, rel=1e-3)
    assert other["a"].low == pytest.approx(one["a"].low, rel=1e-2)
    beyond = 1e23
    assert other.law({"compute": [beyond * unit]})[0] == pytest.approx(
        height * one.law({"compute": [beyond]})[0], rel=1e-3
    )


@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 1000), form=st.sampled_from(["power", "size_samples"]))
def test_the_order_of_runs_does_not_matter(seed: int, form: str) -> None:
    inputs, errors = design(form), noisy(form, seed)
    groups = np.array(["left", "right"])[np.arange(len(errors)) % 2]
    order = np.random.default_rng(seed).permutation(len(errors))
    one = fit_form(form, inputs, errors, FEW, groups)
    shuffled = {name: column[order] for name, column in inputs.items()}
    other = fit_form(form, shuffled, errors[order], FEW, groups[order])
    for mine, theirs in zip(one.estimates, other.estimates, strict=True):
        assert [theirs.best, theirs.low, theirs.high] == pytest.approx(
            [mine.best, mine.low, mine.high], rel=1e-3
        )
    np.testing.assert_allclose(other.residuals, one.residuals[order], atol=1e-5)


@given(
    exponent=st.floats(-3, 3),
    scale=st.floats(1e-3, 1e3),
    compute=st.lists(st.floats(1e3, 1e6), min_size=3, max_size=8, unique_by=lambda c: round(c, -2)),
)
@settings(max_examples=30, deadline=None)
def test_any_exact_power_law_is_recovered(
    exponent: float, scale: float, compute: list[float]
) -> None:
    errors = scale * np.array(compute) ** exponent
    fit = fit_power_law(compute, errors, 0, FEW)
    assert fit.exponent == pytest.approx(exponent, abs=1e-5)
    assert fit.scale == pytest.approx(scale, rel=1e-3)


def test_the_envelope_leaves_out_runs_that_were_not_best() -> None:
    compute = np.geomspace(1e18, 1e21, 40)
    best = law("power", {"compute": compute})
    detour = np.where(np.arange(40) % 4 == 0, 1.0, 1.4)
    fit = fit_power_law(compute, best * detour, 5)
    assert fit.exponent == pytest.approx(-POWER["a"], abs=1e-4)
    assert len(fit.error) == 5
    assert fit_power_law(compute, best * detour, 0).scale > 1.1 * POWER["A"]


def test_runs_of_a_pure_power_law_tell_no_floor() -> None:
    compute = np.geomspace(1e18, 1e21, 16)
    errors = law("power", {"compute": compute}) * np.exp(
        0.01 * np.random.default_rng(0).normal(size=16)
    )
    fit = fit_envelope("saturating", compute, errors, 16)
    floor = fit["E"]
    assert not floor.identified
    assert floor.at_most is not None
    assert 0 < floor.at_most < errors.min()
    with pytest.raises(UnidentifiedError, match=r"E \(error that compute .* at most 0\."):
        _ = floor.value


def test_data_never_repeated_tell_nothing_of_repetition() -> None:
    inputs = design("repetition") | {"unique_samples": design("repetition")["samples"]}
    fit = fit_form("repetition", inputs, law("size_samples", inputs), FEW)
    with pytest.raises(UnidentifiedError, match="R_D"):
        _ = fit["R_D"].value


def test_design_too_small_for_a_law_is_said() -> None:
    fit = fit_power_law([1e18, 2e18, 4e18], [0.5, 0.46, 0.44])
    assert any("no interval: 3 points leave 1 degree" in problem for problem in fit.problems)
    assert (fit["a"].low, fit["a"].high) == (-np.inf, np.inf)
    assert fit.predict({"compute": [1e19]}).high == np.inf
    assert any("3 points" in problem for problem in fit.problems)
    assert any("0.6 decades" in problem for problem in fit.problems)
    one_seed = fit_power_law(COMPUTE, ERROR, groups=[3] * 6)
    assert any("do not tell what chance groups share" in problem for problem in one_seed.problems)


def test_chance_that_groups_share_is_told_from_misfit() -> None:
    rng = np.random.default_rng(5)
    inputs = design("size_samples")
    trunks = np.unique(inputs["parameters"], return_inverse=True)[1]
    errors = law("size_samples", inputs) * np.exp(
        0.03 * rng.normal(size=6)[trunks] + 0.003 * rng.normal(size=36)
    )
    alone = fit_form("size_samples", inputs, errors)
    grouped = fit_form("size_samples", inputs, errors, groups=trunks)
    for fit in (alone, grouped):
        assert fit["a"].low < STUDIES["size_samples"].truth["a"] < fit["a"].high
    assert grouped["a"].high - grouped["a"].low < alone["a"].high - alone["a"].low


def test_chance_that_a_law_absorbs_is_not_made_up_from_what_it_leaves() -> None:
    """Four lengths of each of three sizes: all runs of a size are of one trunk."""
    sizes, samples = np.repeat([0.7e6, 1.4e6, 3.0e6], 4), np.tile([3.2e3, 6.4e3, 1.28e4, 2.56e4], 3)
    wobble = np.exp(0.02 * np.random.default_rng(0).normal(size=12))
    error = (0.3 + 80 / sizes**0.4 + 50 / samples**0.5) * wobble
    fit = fit_form(
        "size_samples", {"parameters": sizes, "samples": samples}, error,
        groups=np.repeat([0, 1, 2], 4), replicates=20,
    )  # fmt: skip
    assert fit.spread < 0.1
    assert any("what chance groups share" in problem for problem in fit.problems)


def test_prediction_of_a_run_is_wider_than_the_law() -> None:
    fit = fit_form("power", design("power"), noisy("power", 0))
    beyond = {"compute": [1e22, 1e24]}
    run = fit.predict(beyond)
    law_itself = fit.law_band(beyond)
    low, high = law_itself.low, law_itself.high
    assert np.all((run.low < low) & (low < run.value) & (run.value < high) & (high < run.high))
    assert np.all(run.low < law("power", {"compute": np.array([1e22, 1e24])}))


@settings(max_examples=10, deadline=None)
@given(points=st.integers(5, 8), seed=st.integers(0, 1000), count=st.integers(1, 8))
def test_any_groups_give_finite_intervals(points: int, seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    compute = np.geomspace(1e18, 1e21, points)
    errors = 30 * compute**-0.1 * np.exp(0.01 * rng.normal(size=points))
    fit = fit_power_law(compute, errors, 0, FEW, groups=rng.integers(0, count, points))
    assert np.isfinite(fit.replicates).all()
    assert fit["a"].low < fit.values[1] < fit["a"].high


COMPUTE, ERROR = np.geomspace(1e18, 1e21, 6), np.geomspace(0.6, 0.3, 6)


@pytest.mark.parametrize(
    ("compute", "error", "bins", "message"),
    [
        ([1e18], [0.5], 5, "1 point to fit.*needs 3 at least; add runs"),
        ([], [], 5, "0 points to fit"),
        (COMPUTE, np.where(ERROR == 0.6, np.nan, ERROR), 5, "error: run 0 has nan.*positive"),
        (COMPUTE, ERROR - 0.3, 5, "error: run 5 has 0.*the 1 such runs of 6"),
        (-COMPUTE, ERROR, 5, "compute: run 0 has -1e"),
        (COMPUTE, ERROR[:5], 5, "one number for each run"),
        (np.full(6, 1e18), ERROR, 0, "compute: 1e.18 in all runs"),
        ([*COMPUTE, 1e18], [*ERROR, 0.6], 5, "runs 0 and 6 are the same point.*groups"),
        (COMPUTE, ERROR, -1, "envelope_bins: -1"),
        (COMPUTE, ERROR, 2, "2 points to fit.*bins of the envelope"),
    ],
)
def test_bad_runs_are_one_clear_error(compute, error, bins: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit_power_law(compute, error, bins)


def test_bad_requests_are_one_clear_error() -> None:
    inputs = design("size_samples")
    with pytest.raises(DataError, match=r"unique_samples: not given.*depends on it"):
        fit_form("repetition", inputs, law("size_samples", inputs))
    with pytest.raises(DataError, match="quadratic: no such form; there are power"):
        fit_form("quadratic", inputs, law("size_samples", inputs))
    with pytest.raises(DataError, match="laws in compute alone"):
        fit_envelope("size_samples", [1.0], [1.0])
    with pytest.raises(DataError, match=r"2,.*labels for 6 runs"):
        fit_power_law(COMPUTE, ERROR, groups=[3, 4])
    with pytest.raises(DataError, match="q: no parameter of A C"):
        fit_power_law(COMPUTE, ERROR)["q"]


def test_misreadings_are_named_and_hardly_move_the_law() -> None:
    inputs, errors = design("size_samples"), noisy("size_samples", 3)
    errors[[3, 20]] *= [1.4, 0.7]
    fit = fit_form("size_samples", inputs, errors)
    assert set(fit.scatter.outliers) >= {3, 20}
    assert len(fit.scatter.outliers) <= 4
    for name, true in STUDIES["size_samples"].truth.items():
        assert fit[name].low < true < fit[name].high


def test_chance_is_known_from_repeated_runs_or_the_test_or_said_to_be_unknown() -> None:
    compute = np.repeat(np.geomspace(1e18, 1e21, 8), 2)
    errors = law("power", {"compute": compute})
    errors *= np.exp(0.02 * np.random.default_rng(0).normal(size=16))
    seeds = fit_form("power", {"compute": compute}, errors, FEW)
    assert seeds.scatter.source == "repeated runs"
    assert seeds.scatter.noise == pytest.approx(0.02, rel=0.6)
    once = fit_form("power", {"compute": compute[::2]}, errors[::2], FEW, noise=np.full(8, 0.01))
    assert (once.scatter.source, once.scatter.noise) == ("the size of the test", 0.01)
    unknown = fit_form("power", {"compute": compute[::2]}, errors[::2], FEW).scatter
    assert (unknown.source, unknown.noise, unknown.misfit) == ("unknown", None, None)


def test_a_bend_that_the_form_does_not_know_is_said_and_widens_predictions() -> None:
    compute = np.geomspace(1e18, 1e21, 24)
    noise = np.exp(0.003 * np.random.default_rng(0).normal(size=24))
    errors = law("saturating", {"compute": compute}) * noise
    straight = fit_form("power", {"compute": compute}, law("power", {"compute": compute}) * noise)
    bent = fit_form("power", {"compute": compute}, errors)
    assert any("have a shape along compute" in problem for problem in bent.problems)
    assert not any("have a shape" in problem for problem in straight.problems)
    widths = [np.log(b.high / b.low)[0] for b in (fit.predict(TENFOLD) for fit in (straight, bent))]
    assert widths[1] > 3 * widths[0]
    near = {"compute": np.array([1.5e21, 3e21])}  # a tenfold run wants the right form
    band, true = bent.predict(near), law("saturating", near)
    assert np.all((band.low < true) & (true < band.high))


def test_no_prediction_is_above_the_error_of_guessing() -> None:
    fit = fit_form("power", design("power"), noisy("power", 0), ceiling=1.0)
    band = fit.predict({"compute": [1e5]})
    assert band.value[0] == band.high[0] == 1.0


def test_a_law_in_size_and_samples_bends_to_the_error_of_guessing() -> None:
    inputs, chance = design("size_samples"), 0.9
    without = 3 * noisy("size_samples", 0)
    errors = (without**-2 + chance**-2) ** -0.5
    assert errors.max() > 0.8 * chance
    fit = fit_form("size_samples", inputs, errors, FEW, ceiling=chance)
    true = 3 * law("size_samples", inputs)
    assert fit.law(inputs) == pytest.approx((true**-2 + chance**-2) ** -0.5, rel=0.02)
    assert fit["b"].low < STUDIES["size_samples"].truth["b"] < fit["b"].high
    assert not any("taken for rates" in problem for problem in fit.problems)


def test_errors_that_level_off_at_one_are_taken_for_rates_and_said_to_be() -> None:
    inputs = design("size_samples")
    raised = 4 * noisy("size_samples", 1)
    rates = fit_form("size_samples", inputs, (raised**-2 + 1) ** -0.5, FEW)
    assert rates.ceiling == 1
    assert any("taken for rates whose error of guessing is 1" in p for p in rates.problems)
    losses = noisy("size_samples", 1)
    losses *= 0.99 / losses.max()
    assert fit_form("size_samples", inputs, losses, FEW).ceiling == np.inf


def test_an_exact_run_beyond_exact_runs_lies_in_its_interval() -> None:
    size, samples = (a.ravel() for a in np.meshgrid(np.geomspace(1e8, 5e8, 4), [2e9, 5e9, 1e10]))
    error = 5 * size**-0.08 + 8 * samples**-0.1  # no floor: E lies at the end of its search
    fit = fit_form("size_samples", {"parameters": size, "samples": samples}, error, 100)
    more = {"parameters": np.array([1e9, 4e9]), "samples": np.array([4e10, 1e10])}
    band, truth = (
        fit.predict(more),
        5 * np.array([1e9, 4e9]) ** -0.08 + 8 * (np.array([4e10, 1e10]) ** -0.1),
    )
    assert ((band.low <= truth) & (truth <= band.high)).all()
    assert ((band.high - band.low) / band.value < 0.01).all()


def test_what_is_unlimited_is_predicted_with_an_interval() -> None:
    study = STUDIES["size_samples"]
    inputs, error = study.runs(seed=0)
    fit = fit_form("size_samples", inputs, error, 100)
    band = fit.predict({"parameters": [1e9, np.inf], "samples": [np.inf, np.inf]})
    assert np.isfinite([band.value, band.low, band.high]).all()
    assert (band.low < band.value).all()
    assert (band.value < band.high).all()
