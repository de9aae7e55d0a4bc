"""Laws of a study's points: known ones are found again, and what cannot be used is said."""

import csv
import json

import numpy as np
import pytest
from sweep_support import study_config

from pipelines.sweep.config import FitConfig
from pipelines.sweep.fit import fit_laws

TARGET = "1-scenes/whole_t2i_r1"
SCALES = {"one": 2.0, "other": 4.0}


def point(family: str, size: str, samples: int, lr: float = 1e-3, seed: int = 0, **changes):
    parameters = {"s": 1e6, "m": 4e6, "l": 16e6, "xl": 64e6}[size]
    compute = 6 * parameters * samples
    error = SCALES[family] * (compute / 1e12) ** -0.2 / 10
    axes = {
        "point": f"{family}-{size}-{samples}-{lr}-{seed}",
        "trunk": f"{family}-{size}-{lr}-{seed}",
        "family": family, "size": size, "parameters": parameters, "samples": samples,
        "unique_samples": 10**9, "global_batch": 32, "lr": lr, "seed": seed, "compute": compute,
        TARGET: error * (1 if lr == 1e-3 else 1.5),
    }  # fmt: skip
    return axes | changes


def study(families=("one", "other"), rates=(1e-3,)) -> list[dict]:
    lengths = np.geomspace(1e5, 1e7, 4).round().astype(int).tolist()
    return [
        point(family, size, samples, lr)
        for family in families
        for size in ("s", "m", "l", "xl")
        for samples in lengths
        for lr in rates
    ]


def config(folder, **changes):
    fit = FitConfig(replicates=100, forms=("power",), bins=0)
    return study_config(folder, targets=[TARGET], fit=fit, **changes)


def test_known_laws_are_found_compared_and_stored(tmp_path):
    printed = fit_laws(config(tmp_path), study())
    folder = tmp_path / "study" / "fit"
    assert {path.name for path in folder.iterdir()} == {"fit.json", "fit.csv", "fit.html"}
    assert TARGET in printed
    with (folder / "fit.csv").open() as file:
        rows = list(csv.DictReader(file))
    exponents = {row["family"]: float(row["value"]) for row in rows if row["name"] == "a"}
    assert exponents == {name: pytest.approx(0.2) for name in SCALES}
    json.loads((folder / "fit.json").read_text())


def test_worse_learning_rates_and_perfect_scores_have_no_part_in_a_law(tmp_path):
    rows = study(rates=(1e-4, 1e-3))
    rows[-1][TARGET] = 0.0
    printed = fit_laws(config(tmp_path), rows)
    assert "32 runs are worse over lr" in printed
    assert "1 runs without a single error are left out, which bends the law" in printed
    points = json.loads((tmp_path / "study" / "fit" / "fit.json").read_text())["studies"][0]
    assert sum(len(law["points"]["error"]) for law in points["laws"]) == len(rows) // 2 - 1


def test_a_target_without_a_law_is_one_line_and_no_report(tmp_path):
    printed = fit_laws(config(tmp_path), study()[:1])
    assert "no law: one: no law in compute: 1 point to fit" in printed
    assert len(printed.splitlines()) == 1
    assert not (tmp_path / "study" / "fit").exists()


def test_a_point_without_its_score_is_left_out_and_named(tmp_path):
    rows = study(families=("one",))
    rows[3][TARGET] = float("nan")
    assert f"1 runs have no {TARGET}: line 5" in fit_laws(config(tmp_path), rows)


def test_errors_are_predicted_through_the_loss_of_the_study(tmp_path):
    rows = study(families=("one",))
    for row in rows:
        row["loss/whole"] = 1 + 2 * (row["compute"] / 1e12) ** -0.1
        row[TARGET] = 0.9 - 1.5 * np.exp(-1.2 * row["loss/whole"])
    fit = FitConfig(replicates=100, forms=("saturating",), bins=0)
    both = study_config(tmp_path, targets=["loss/whole", TARGET], fit=fit)
    assert f"prediction: {TARGET}, through the loss" in fit_laws(both, rows)
    rows[0]["global_batch"] = 64  # a loss depends on it
    assert "through the loss" not in fit_laws(both, rows)
