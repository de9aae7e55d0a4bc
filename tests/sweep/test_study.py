"""A whole study on a real cluster: planned, its driver killed, run to its end, laws fitted."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from mlflow import MlflowClient
from sweep_support import study_config, tiny_models

from pipelines.sweep.__main__ import main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TARGET = "loss/whole"


def test_a_study_survives_its_driver_and_ends_in_a_law(dataset_folder, tmp_path, capsys):
    """A model at three lengths; the second command ends the processes that the first one left, and
    repeats no job that was done."""
    config = study_config(
        tmp_path,
        train_set=[
            "optimizer.warmup_steps=2", "scaling.num_workers=1", f"dataset={dataset_folder}",
            "global_batch=8", "block_size=8", "batch_norm_images=4", "ingest.window_steps=3",
            "log_every_steps=2",
        ],
        evaluate_set=[f"benchmarks=[{{name: s, dataset: {dataset_folder}, split: test_scenes}}]"],
        families={"tiny": {"one": tiny_models()["one"]}}, samples_seen=[160, 240, 320],
        targets=[TARGET, "1-s/whole_t2i_r1"], cooldown_fraction=0.3,
        fit={"forms": ["power"], "bins": 0, "replicates": 50},
        tracking={"uri": f"sqlite:///{tmp_path}/mlflow.db"},
        progress_every_s=1.0,
    )  # fmt: skip
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "pipelines.sweep", "run", str(path)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    state = Path(config.output, "state")

    first = subprocess.Popen(command, env=environment, start_new_session=True)
    deadline = time.monotonic() + 300
    while len(done_in(state)) < 2:
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    finished = {name: (state / f"{name}.json").read_text() for name in done_in(state)}
    second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert second.returncode == 0, second.stdout + second.stderr
    assert len(done_in(state)) == 1 + 2 * 3
    for name, before in finished.items():
        assert (state / f"{name}.json").read_text() == before, "a job that was done ran again"

    assert processes_of(config) == [], "left behind"
    assert "3 of 3 points are done" in second.stdout
    with Path(config.output, "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["samples"]) for row in rows] == [160, 240, 320]
    assert all(float(row[TARGET]) > 0 for row in rows)
    assert (Path(config.output) / "fit" / "fit.html").stat().st_size > 1000
    assert_runs_in_mlflow(config)
    assert main(["fit", str(path)]) == 0
    assert "3 of 3 points are done" in capsys.readouterr().out


def processes_of(config) -> list[int]:
    """Processes that have the study's output on their command line."""
    lines = {process.pid: process.info["cmdline"] for process in psutil.process_iter(["cmdline"])}
    return [pid for pid, line in lines.items() if any(config.output in word for word in line or ())]


def done_in(state: Path) -> list[str]:
    """Names of the tasks that are done."""
    known = {path.stem: path.read_text() for path in state.glob("*.json")}
    return sorted(name for name, text in known.items() if json.loads(text)["status"] == "done")


def assert_runs_in_mlflow(config) -> None:
    """One parent, with a child for each point, and the stages' own runs below it too."""
    client = MlflowClient(config.tracking.uri)
    parent = json.loads(Path(config.output, "run.json").read_text())["run_id"]
    (experiment,) = [e for e in client.search_experiments() if e.name == config.tracking.experiment]
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent]
    points = [run for run in children if run.data.tags["stage"] == "point"]
    assert len(points) == 3
    for run in points:
        assert run.data.tags["size"] == "one"
        history = client.get_metric_history(run.info.run_id, TARGET)
        assert [metric.step for metric in history] == [int(run.data.params["samples"])]
    assert {run.data.tags["stage"] for run in children} == {"point", "train", "evaluate"}
    assert {artifact.path for artifact in client.list_artifacts(parent)} >= {
        "runs.csv", "fit.html", "fit.json",
    }  # fmt: skip
