"""Plans of studies: arithmetic of trunks and cool-downs, prices, and what a design cannot tell."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from caft.config import load_config, load_model_config
from caft.cost import Workload, describe, flops
from caft.errors import ConfigError
from pipelines.config import TrackingConfig
from pipelines.sweep.__main__ import main
from pipelines.sweep.config import SweepConfig
from pipelines.sweep.plan import make_plan, plan_table
from pipelines.sweep.points import all_points, points_of, with_new_steps
from pipelines.sweep.tasks import Task, all_tasks

CONFIGS = Path(__file__).parents[2] / "configs"
SIZES = {
    f"w{width}": {
        "base": "caft_xs",
        "image": {"width": width, "stem_widths": [16, 32, 48, width]},
        "text": {"width": width},
    }
    for width in (32, 64, 128)
}
BATCH = 32  # of the recipe


def study(**changes) -> SweepConfig:
    fields = {
        "output": "/nowhere/study",
        "train": str(CONFIGS / "train" / "demo.yaml"),
        "train_set": ["optimizer.warmup_steps=10", "dataset=/nowhere/data"],
        "evaluate": str(CONFIGS / "evaluate" / "scenes.yaml"),
        "families": {"caft": SIZES},
        "samples_seen": [3200, 6400, 12800, 64000],
        "targets": ["1-scenes/whole_t2i_r1"],
    }
    return SweepConfig.model_validate(fields | changes)


def test_a_point_costs_what_its_model_does_to_its_samples():
    made = make_plan(study(), pool_rows=6400)
    by_name = {point.name: point for point in made.points}
    assert len(by_name) == len(made.points) == 3 * 4
    point = by_name["caft-w128-dall-b32-lr0.0007-s0-n12800"]
    model = load_model_config(SIZES["w128"])
    assert point.parameters == sum(row.parameters for row in describe(model) if not row.frozen)
    work = Workload(parts=4, global_batch=32, block_size=32)  # the recipe reads no further parts
    assert point.compute == 12800 * flops(model, work).training
    assert point.unique_samples == 6400
    assert point.repeats == 2.0


def test_shared_trunks_are_paid_once_and_measured_speeds_are_taken():
    cost = {"images_per_s": {"caft.w32": 1000.0}, "price_per_device_hour": 2.0}
    made = make_plan(study(cost=cost), None)
    small = [point for point in made.points if point.size == "w32"]
    steps, trunk = [100, 200, 400, 2000], 0
    for point, length in zip(small, steps, strict=True):
        branch = round(0.8 * length)
        assert point.device_hours * 3600 * 1000 == pytest.approx(
            (branch - trunk + length - branch) * BATCH
        )
        assert point.repeats is None
        trunk = branch
    assert made.device_hours < made.alone_hours
    assert made.price == pytest.approx(2 * made.device_hours)
    assert made.guessed == ("caft.w64", "caft.w128")
    text = plan_table(made)
    assert "hours are a guess for caft.w64, caft.w128" in text
    assert "12 points" in text
    all_guessed = make_plan(study(), None).points[0].device_hours
    assert all_guessed == pytest.approx(small[0].compute / (0.3 * 989e12) / 3600)


@given(
    st.sets(st.integers(600, 100_000), min_size=1, max_size=6),
    st.floats(0.05, 0.9),
)
def test_trunks_reach_every_branch_and_nothing_is_trained_twice(samples, fraction):
    config = study(
        samples_seen=sorted(samples),
        cooldown_fraction=fraction,
        train_set=["optimizer.warmup_steps=0", "dataset=/nowhere/data"],
        families={"caft": {"w32": SIZES["w32"]}},
    )
    points = all_points(config)
    assert points == points_of(points[0].setting, config)
    added = with_new_steps(points)
    trunk = max(point.branches_at for point in points)
    assert sum(steps for _, steps in added) == trunk + sum(p.cooldown_steps for p in points)
    for point in points:
        assert 0 < point.branches_at < point.steps


def test_designs_that_cannot_tell_a_law_are_warned_of():
    def warnings(**changes) -> str:
        return "\n".join(make_plan(study(**changes), None).warnings)

    assert warnings() == ""
    assert "2 different computes" in warnings(
        samples_seen=[3200, 64000], families={"caft": {"w32": SIZES["w32"]}}
    )
    assert "spans 0.6 decades" in warnings(
        samples_seen=[3200, 6400, 12800], families={"caft": {"w32": SIZES["w32"]}}
    )
    assert "2 sizes" in warnings(families={"caft": {n: SIZES[n] for n in ("w32", "w128")}})
    assert "one-sided" in warnings(samples_seen=[3200, 3300])
    odd = {**SIZES, "w64": {**SIZES["w64"], "losses": {"whole": "softmax"}}}
    assert "differ in model.losses.whole" in warnings(families={"caft": odd})
    assert "batches differ" in warnings(global_batch=[32, 64])


def test_impossible_studies_are_refused():
    with pytest.raises(ConfigError, match=r"samples_seen: 320 are 10 steps of 32, too few"):
        make_plan(study(samples_seen=[320]), None)
    with pytest.raises(ConfigError, match=r"rows: 7,000 are more than the dataset's 6,400"):
        make_plan(study(rows=[100, 7000]), 6400)
    budget = {"budget_device_hours": 1.0, "images_per_s": {"caft.w128": 1.0}}
    with pytest.raises(ConfigError, match=r"takes about .* device-hours, the budget is 1\.0"):
        make_plan(study(cost=budget), None)
    for changes, problem in (
        ({"targets": ["scenes/whole_t2i_r1"]}, "write loss/TERM or 1-BENCHMARK/METRIC"),
        ({"seeds": [1, 1]}, "1 is there twice"),
        ({"cost": {"images_per_s": {"caft.no": 1.0}}}, r"no model is called 'caft\.no'"),
        ({"families": {}}, "families"),
    ):
        with pytest.raises(ValueError, match=problem):
            study(**changes)


def test_the_command_prints_and_stores_the_plan(tmp_path, capsys):
    config = study(output=str(tmp_path / "study"), rows=[100, None])
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert main(["plan", str(path), "samples_seen=[3200,6400]"]) == 0
    printed = capsys.readouterr().out
    stored = json.loads((tmp_path / "study" / "plan.json").read_text())
    rows = list(csv.DictReader(io.StringIO((tmp_path / "study" / "plan.csv").read_text())))
    assert len(stored["points"]) == len(rows) == 3 * 2 * 2
    for row, point in zip(rows, stored["points"], strict=True):
        assert row["name"] == point["name"]
        assert row["name"] in printed
        assert float(row["compute"]) == point["compute"]
    assert "warning: caft: compute spans" in printed
    assert main(["plan", str(path), "samples_seen=[1]"]) == 2
    assert "too few" in capsys.readouterr().err


def test_recipes_in_the_repository_can_be_planned():
    for path in (CONFIGS / "sweep").glob("*.yaml"):
        make_plan(load_config(SweepConfig, path), None)


def test_tasks_are_the_commands_of_the_stages():
    config = study(
        samples_seen=[3200, 6400, 12800], rows=[2000], families={"caft": {"w32": SIZES["w32"]}}
    )
    tasks = all_tasks(config, all_points(config), TrackingConfig(parent_run_id="abc"), 6400)
    trunk, first, scored = tasks[:3]
    assert [task.stage for task in tasks] == ["train", *["train", "evaluate"] * 3]
    asked = overrides(trunk)
    assert asked["checkpoint.at_steps"] == [80, 160, 320]
    assert asked["optimizer.schedule"] == "constant"
    assert asked["subset"] == {"rows": 2000}
    assert asked["tracking.parent_run_id"] == "abc"
    assert first.needs == (trunk.name,)
    assert scored.needs == (first.name,)
    asked = overrides(first)
    assert asked["optimizer.cooldown_steps"] == 20
    start = f"{trunk.output}/checkpoints/step-00000080"
    assert asked["start_from"] == {"checkpoint": start, "state": True}
    assert round(asked["epochs"] * (2000 // 32)) == 100
    assert overrides(scored)["checkpoint"] == f"{first.output}/final"


def overrides(task: Task) -> dict[str, Any]:
    """What the arguments after the recipe set."""
    pairs = (argument.split("=", 1) for argument in task.arguments[1:])
    return {key: yaml.safe_load(value) for key, value in pairs}


def test_learning_rates_compete_on_the_first_length():
    config = study(lr=[1e-3, 1e-4], families={"caft": {"w32": SIZES["w32"]}})
    tasks = all_tasks(config, all_points(config), TrackingConfig(), 6400)
    waiting = {task.name for task in tasks if task.waits_for_choice}
    first = [task for task in tasks if task.name not in waiting]
    assert len(first) == 2 * 3  # trunk, cool-down and evaluation of each rate
    trunks = [task for task in tasks if task.name.startswith("trunk-") and task.name in waiting]
    assert len(trunks) == 2
    for trunk in trunks:
        asked = overrides(trunk)
        assert asked["checkpoint.at_steps"] == [160, 320, 1600]
        (before,) = trunk.needs
        start = f"{config.output}/train/{before}/checkpoints/step-00000080"
        assert asked["start_from"]["checkpoint"] == start
