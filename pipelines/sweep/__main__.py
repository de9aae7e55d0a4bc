"""The sweep stage: a scaling study planned, run, and its laws fitted.
`python -m pipelines.sweep plan|run|fit CONFIG [key=value ...]`; `run` also plans and fits."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path

from caft.config import to_yaml
from caft.errors import DataError
from pipelines import storage, user_paths
from pipelines.config import TrackingConfig, command
from pipelines.data.dataset import open_dataset
from pipelines.ownership import owned
from pipelines.recipes import load_recipe
from pipelines.runs import check_tracking
from pipelines.submit.jobs import LONG_PATIENCE_S, Jobs, on_local_cluster
from pipelines.sweep.asked import require_same_tasks
from pipelines.sweep.config import SweepConfig
from pipelines.sweep.fit import FIT, fit_laws
from pipelines.sweep.plan import Plan, make_plan, plan_csv, plan_table, table_csv
from pipelines.sweep.points import Point, all_points, recipe_of
from pipelines.sweep.results import PointConfig, collect, errors_of
from pipelines.sweep.schedule import Scheduler, room_for
from pipelines.sweep.state import Store
from pipelines.sweep.tasks import all_tasks
from pipelines.tracking import About, EventLog, Tracker, send_rest
from pipelines.train.ingest import index_row_groups

RUNS, RUN = "runs.csv", "run.json"


def plan(config: SweepConfig) -> Plan:
    """Print the plan and store it in the output.

    Raises:
        ConfigError: a recipe or axis that cannot be, or the budget exceeded.
    """
    rows = None
    with suppress(DataError):  # a study may be planned before its data are there
        rows = pool_rows(config)
    return _plan(config, rows)


def _plan(config: SweepConfig, rows: int | None) -> Plan:
    made = make_plan(config, rows)
    print(plan_table(made), flush=True)
    text = json.dumps(asdict(made), indent=2) + "\n"
    storage.write_bytes(storage.join(config.output, "plan.json"), text.encode())
    storage.write_bytes(storage.join(config.output, "plan.csv"), plan_csv(made).encode())
    return made


def run(config: SweepConfig) -> None:
    """Run every point that is not done yet.

    Raises:
        ConfigError: as `plan`, or the output holds another study.
        DataError: the dataset is missing or unfinished.
        ClusterError: the cluster has no room for one point, or points failed for good.
    """
    rows = pool_rows(config)
    points = all_points(config)
    require_same_tasks(all_tasks(config, points, config.tracking, rows))
    _plan(config, rows)
    families = ", ".join(config.families)
    about = About(
        "sweep",
        families,
        f"A scaling study of {families}: {len(points)} points, each a training, an evaluation and "
        "a run below this one.",
        config.output,
        storage.join(_fits(config), "fit.html"),
    )
    send_rest(config.tracking, config.output)  # of points
    log = EventLog(config.output, "sweep")
    with Tracker.start(config.tracking, about, config, log, earlier=_known(config)) as parent:
        storage.write_json(storage.join(config.output, RUN), {"run_id": parent.run_id})
        storage.write_bytes(storage.join(config.output, "sweep.yaml"), to_yaml(config).encode())
        tracking = config.tracking.model_copy(update={"parent_run_id": parent.run_id})
        jobs = Jobs(LONG_PATIENCE_S)
        scheduler = Scheduler(
            config,
            all_tasks(config, points, tracking, rows),
            store := Store(config.output),
            jobs,
            room_for(config, points, jobs.resources()),
            error=lambda point: errors_of(point, config)[config.targets[0]],
            finished=lambda point: _log(point, config, tracking, rows),
        )
        scheduler.run()
        for point in points:
            if store[f"evaluate-{point.name}"].status != "done":
                print(f"sweep: not done: {point.name}: {_why(store, point)}", flush=True)
        _fit(config, points, rows)
        for name in (RUNS, *(f"{FIT}/{file}" for file in storage.list_files(_fits(config)))):
            parent.log_artifact(storage.join(config.output, name))


def fit(config: SweepConfig) -> None:
    """Fit laws to the points that are done; print and store them.

    Raises:
        DataError: no point is done.
        ConfigError: a point was done with another recipe, model, dataset or benchmark.
    """
    points, rows = all_points(config), pool_rows(config)
    require_same_tasks(all_tasks(config, points, config.tracking, rows))
    _fit(config, points, rows)


def _fit(config: SweepConfig, points: Sequence[Point], rows: int) -> None:
    found = collect(points, config, rows)
    text = table_csv(found, list(dict.fromkeys(key for row in found for key in row)))
    storage.write_bytes(storage.join(config.output, RUNS), text.encode())
    print(f"sweep: {len(found)} of {len(points)} points are done\n", flush=True)
    print(fit_laws(config, found), flush=True)
    if storage.list_files(_fits(config)):
        print(f"\nsweep: {_fits(config)}/fit.html", flush=True)


def _fits(config: SweepConfig) -> str:
    return storage.join(config.output, FIT)


def _log(point: Point, config: SweepConfig, tracking: TrackingConfig, rows: int) -> None:
    """A child run of the study for one point, its errors at the step of its samples."""
    setting = point.setting
    about = About(
        "point",
        point.name,
        f"One point of a scaling study: {setting.family} {setting.size} after {point.samples:,} "
        f"samples at learning rate {setting.recipe.optimizer.lr:g}.",
    )
    log = EventLog(config.output, f"point-{point.name}")
    tracker = Tracker.start(tracking, about, PointConfig.of(point, rows), log)
    tracker.set_tags({"family": setting.family, "size": setting.size})
    tracker.log_metrics(errors_of(point, config), step=point.samples)
    tracker.close("FINISHED")


def _why(store: Store, point: Point) -> str:
    states = (store[name] for name in (point.name, f"evaluate-{point.name}"))
    return next((state.why for state in states if state.why), "not started")


def pool_rows(config: SweepConfig) -> int:
    """Rows of the dataset's split.

    Raises:
        DataError: the dataset is missing, unfinished or damaged.
    """
    recipe = recipe_of(config)
    groups = index_row_groups(open_dataset(recipe.dataset), recipe.split)
    return sum(group.rows for group in groups)


def _known(config: SweepConfig) -> str | None:
    """The MLflow run of an earlier command."""
    path = storage.join(config.output, RUN)
    return str(storage.read_json(path)["run_id"]) if storage.exists(path) else None


COMMANDS: dict[str, Callable[[SweepConfig], object]] = {"plan": plan, "run": run, "fit": fit}


def main(argv: Sequence[str]) -> int:
    """Console entry."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.sweep", description=__doc__)
    parser.add_argument("command", choices=list(COMMANDS))
    parser.add_argument("config", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override single keys")
    parser.add_argument("--print-config", action="store_true", help="print the result and stop")
    parser.add_argument("--wait", action="store_true", help="until no other run has the output")
    args = parser.parse_args(argv)

    def call() -> int:
        config = load_recipe(SweepConfig, args.config, args.overrides)
        output = user_paths.usable_path(config.output, "output", folder=True).rstrip("/")
        config = config.model_copy(update={"output": output})
        if args.print_config:
            print(to_yaml(config), end="")
            return 0
        if args.command == "run":
            tracking = check_tracking(config.tracking)
            config = config.model_copy(update={"tracking": tracking})
        if args.command == "run" and not os.environ.get("RAY_ADDRESS"):
            make_plan(config, pool_rows(config))  # what is wrong is said before a cluster starts
            root = Path(config.output if storage.is_local(config.output) else "runs") / "cluster"
            return on_local_cluster(["-m", "pipelines.sweep", *argv], root)
        with owned(config.output, "sweep", args.wait) if args.command == "run" else nullcontext():
            COMMANDS[args.command](config)
        return 0

    return command(call)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
