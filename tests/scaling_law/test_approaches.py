"""Ways beside one law for each family: best sizes at equal compute, error through the loss, two
families with one floor, one exponent under over-training, data that teach less each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caft.errors import DataError
from caft.scaling_law import compute_optimal, fit_form, growth, measure_cost
from caft.scaling_law.fit import fit_law
from caft.scaling_law.forms import FORMS
from caft.scaling_law.isoflop import isoflop
from caft.scaling_law.joint import fit_together
from caft.scaling_law.optimum import Cost
from caft.scaling_law.runs import Columns, Runs, Target, select_runs
from caft.scaling_law.stages import OfLoss, fit_stages
from caft.scaling_law.study import study_runs
from caft.scaling_law.table import LINE

FEW = 100


def equal_compute(
    rng: np.random.Generator, budgets: int = 6, noise: float = 0.003
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Runs of several sizes at each budget, of a law whose best size grows as compute^0.54."""
    compute = np.repeat(np.geomspace(1e18, 1e21, budgets), 7)
    best = (0.3 * 60 / (0.35 * 700) * (compute / 6) ** 0.35) ** (1 / 0.65)
    size = np.tile(np.geomspace(0.15, 5, 7), budgets) * best
    inputs = {"compute": compute, "parameters": size, "samples": compute / (6 * size)}
    law = 0.2 + 60 * size**-0.3 + 700 * inputs["samples"] ** -0.35
    return inputs, law * np.exp(noise * rng.normal(size=len(size)))


def test_best_sizes_of_equal_compute_agree_with_the_law() -> None:
    inputs, error = equal_compute(np.random.default_rng(0))
    law = fit_form("size_samples", inputs, error, FEW)
    cost = measure_cost(*(inputs[n] for n in ("compute", "parameters", "samples")))
    found = isoflop(inputs["compute"], inputs["parameters"], error, law, cost)
    assert len(found.profiles) == 6
    assert [g.approach for g in found.growths] == ["isoFLOP parabolas", "the front", "the law"]
    true = 0.35 / 0.65
    for approach in found.growths:
        assert approach.exponent.low[0] < true < approach.exponent.high[0], approach.approach
    assert found.problem is None
    best = compute_optimal(law, [found.profiles[3].compute], cost).parameters.value[0]
    assert found.profiles[3].best == pytest.approx(best, rel=0.2)


def test_approaches_that_contradict_each_other_are_named() -> None:
    inputs, error = equal_compute(np.random.default_rng(0))
    other = fit_form("tied", inputs, error, FEW)  # of which the best size grows as compute^0.5
    grown = inputs["compute"] ** 0.9 * inputs["parameters"]
    steep = isoflop(inputs["compute"], grown, error, other)
    assert "do not agree on how the best size grows" in str(steep.problem)


def test_too_few_budgets_have_no_best_sizes() -> None:
    inputs, error = equal_compute(np.random.default_rng(0), budgets=2)
    with pytest.raises(DataError, match="2 budgets have a best size"):
        isoflop(inputs["compute"], inputs["parameters"], error)


def test_one_exponent_holds_under_over_training() -> None:
    """Fitted at 5 to 40 samples a parameter, asked at 600."""
    size, ratio = (a.ravel() for a in np.meshgrid(np.geomspace(1e7, 1e9, 6), [5, 10, 20, 40]))
    truth = FORMS["tied"]

    def law(inputs: dict[str, np.ndarray]) -> np.ndarray:
        return truth.error(np.array([[1.8, 500, 0.3, 700]]), inputs)[0]

    inputs = {"parameters": size, "samples": size * ratio}
    error = law(inputs) * np.exp(0.003 * np.random.default_rng(1).normal(size=len(size)))
    fit = fit_form("tied", inputs, error, FEW)
    assert fit["a"].low < 0.3 < fit["a"].high
    far = {"parameters": np.array([3e9]), "samples": np.array([1.8e12])}
    band = fit.predict(far)
    assert band.low[0] < law(far)[0] < band.high[0]
    of_size, of_data = growth(fit)
    assert of_size.value[0] == of_data.value[0] == 0.5
    assert compute_optimal(fit, [1e21], Cost(6.0, 1.0)).parameters.value[0] > 0


def test_data_teach_less_with_each_pass() -> None:
    unique, passes = (a.ravel() for a in np.meshgrid([1e5, 1e6, 1e7], [0.5, 1, 2, 3.5, 8, 16]))
    inputs = {"samples": unique * passes, "unique_samples": unique}
    values = np.array([[0.2, 20.0, 0.25, 3.0]])
    law = FORMS["decay"].error(values, inputs)[0]
    once = inputs["samples"] <= unique
    assert law[once] == pytest.approx(0.2 + 20 * inputs["samples"][once] ** -0.25)
    # By hand: three passes and a half over a million.
    share = 2 ** (-1 / 3)
    later = share**2 * np.log(3 / 2) + share**3 * np.log(3.5 / 3)
    worth = np.exp(np.log(1e6) + share * np.log(2) + later)
    place = np.flatnonzero((unique == 1e6) & (passes == 3.5))[0]
    assert law[place] == pytest.approx(0.2 + 20 * worth**-0.25)
    error = law * np.exp(0.002 * np.random.default_rng(3).normal(size=len(law)))
    fit = fit_form("decay", inputs, error, FEW)
    assert fit["h"].low < 3 < fit["h"].high
    assert fit["b"].low < 0.25 < fit["b"].high
    lines = tuple(map(str, range(len(error))))
    runs = Runs("pool", {**inputs, "compute": inputs["samples"]}, error, lines=lines)
    law_in = study_runs("error", [runs], replicates=FEW).families[0].laws
    assert law_in["data"].chosen == "decay"


def test_the_error_of_a_loss_predicts_where_errors_alone_bend() -> None:
    rng = np.random.default_rng(2)
    compute = np.geomspace(1e15, 1e19, 14)

    def loss_of(compute: np.ndarray) -> np.ndarray:
        return 1.8 + 2 * (compute / 1e15) ** -0.2

    def error_of(loss: np.ndarray) -> np.ndarray:
        return 0.85 - 1.5 * np.exp(-0.9 * loss)

    loss = loss_of(compute) * np.exp(0.005 * rng.normal(size=14))
    error = error_of(loss) * np.exp(0.01 * rng.normal(size=14))
    stages = fit_stages(compute, loss, error, replicates=FEW)
    band = stages.predict([1e20])
    truth = error_of(loss_of(np.array([1e20])))[0]
    assert band.low[0] < truth < band.high[0]
    assert band.high[0] - band.low[0] < 0.2 * truth
    of_loss = fit_law(OfLoss(), {"loss": loss}, error, FEW)
    assert of_loss["c"].low < 0.9 < of_loss["c"].high


def test_families_with_one_floor_are_told_apart_where_each_alone_is_not() -> None:
    rng = np.random.default_rng(0)

    def runs(scale: float, floor: float, count: int) -> tuple[np.ndarray, np.ndarray]:
        compute = np.geomspace(1e10, 1e12, count)
        law = scale * (compute + 1e9) ** -0.3 + floor
        return compute, law * np.exp(0.005 * rng.normal(size=count))

    one, other = runs(300, 0.08, 6), runs(360, 0.08, 6)
    found = fit_together(one, other, FEW).compare([1e11])
    true = (300 * 1.01e11**-0.3 + 0.08) / (360 * 1.01e11**-0.3 + 0.08)
    assert found.ratio.low[0] < true < found.ratio.high[0] < 1
    assert found.multiple.value[0] > 1
    assert fit_form("saturating", {"compute": one[0]}, one[1], FEW).draws is None  # no interval
    with pytest.raises(DataError, match="do not share a floor"):
        fit_together(runs(300, 0.001, 14), runs(300, 0.4, 14), FEW)


def along_runs(pairs: int) -> list[dict[str, str]]:
    """Twelve checkpoints that are 15% worse than cooled runs, of which `pairs` are there too."""
    compute = np.geomspace(1e15, 1e18, 12)
    law = 20 * compute**-0.1
    rows = [(c, 1.15 * e, "constant") for c, e in zip(compute, law, strict=True)]
    rows += [(c, e, "cooled") for c, e in list(zip(compute, law, strict=True))[::2][:pairs]]
    return [
        {"line": str(n), "c": f"{c:.6g}", "e": f"{e:.9g}", "rate": rate, "run": "one"}
        for n, (c, e, rate) in enumerate(rows, 2)
    ]


@pytest.mark.parametrize("pairs", [4, 2])
def test_checkpoints_along_a_run_count_as_if_cooled_down(pairs: int) -> None:
    rows = [{LINE: row.pop("line"), **row} for row in along_runs(pairs)]
    columns = Columns(compute="c", group="run", schedule="rate")
    (runs,) = select_runs(rows, Path("runs.csv"), Target("e"), columns)
    assert len(runs.error) == 12
    if pairs == 4:
        law = 20 * runs.inputs["compute"] ** -0.1
        assert runs.error == pytest.approx(law, rel=1e-4)
        said = "8 runs whose rate is not cooled count with their error over 1.15"
    else:
        said = "2 runs whose rate is not constant are left out"
    assert said in str(runs.problems)
