"""What a run shows in MLflow, on a real SQLite store, and in the other trackers."""

import json
import os
import subprocess
import sys

import pytest
from mlflow import MlflowClient

from caft.config import load_config
from caft.errors import ConfigError
from pipelines import storage
from pipelines.config import StageConfig
from pipelines.runs import check_tracking
from pipelines.tracking import About, DatasetUse, EventLog, Tracker


@pytest.fixture
def log(tmp_path) -> EventLog:
    return EventLog(str(tmp_path / "out"), "train")


def test_a_run_holds_parameters_metrics_tags_and_artifacts(tracking, log):
    config = StageConfig(tracking=tracking)
    note = f"{log.output}/note.txt"
    storage.write_bytes(note, b"hello")
    about = About("train", "first", "A test.")
    with Tracker.start(tracking, about, config, log, {"data": "abc"}) as tracker:
        for step in range(3):
            tracker.log_metrics({"loss": 3.0 - step}, step=step)
        tracker.log_artifact(note, "notes")
    client = MlflowClient(tracking.uri)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["progress_every_s"] == "10.0"
    assert run.data.tags["data_run_id"] == "abc"
    assert run.data.tags["stage"] == "train"
    assert [m.value for m in client.get_metric_history(tracker.run_id, "loss")] == [3.0, 2.0, 1.0]
    assert [a.path for a in client.list_artifacts(tracker.run_id, "notes")] == ["notes/note.txt"]


def test_a_run_says_what_it_is_and_links_to_what_it_builds_on(tracking, tmp_path, monkeypatch):
    monkeypatch.setenv("CAFT_USER", "ada")
    monkeypatch.setenv("CAFT_GIT_REVISION", "0123456789ab+")
    monkeypatch.setattr("sys.argv", ["caft", "train", "key=a b"])
    config = StageConfig(tracking=tracking)
    logs = [EventLog(str(tmp_path), name) for name in "abc"]
    first = About("data", "cc3m", "Builds a dataset.", "/d/3m")
    with Tracker.start(tracking, first, config, logs[0]) as a:
        pass
    about = About("train", "caft_b 3m", "Trains caft_b.", "/out/run1", "/out/run1/page.html")
    links = {"data": a.run_id, "train": "unknown", "none": ""}
    below = tracking.model_copy(update={"parent_run_id": a.run_id})
    with Tracker.start(below, about, config, logs[1], links) as tracker:
        pass
    client = MlflowClient(tracking.uri)
    run = client.get_run(tracker.run_id)
    tags, number = run.data.tags, run.info.experiment_id
    assert run.info.run_name == "train caft_b 3m (run1)"
    link = f"[data cc3m (3m)](#/experiments/{number}/runs/{a.run_id}?workflowType=machine_learning)"
    assert tags["mlflow.note.content"].splitlines()[:5] == [
        "Trains caft_b.", "", f"- built on: data {link}, train `unknown`, parent {link}",
        "- output: `/out/run1`", "- report: `/out/run1/page.html`",
    ]  # fmt: skip
    assert "train 'key=a b'" in tags["mlflow.note.content"]
    assert tags["mlflow.user"] == "ada"
    assert tags["mlflow.source.type"] == "LOCAL"
    assert tags["mlflow.source.git.commit"] == "0123456789ab"
    assert tags["git_revision"] == "0123456789ab+"
    kind = client.get_experiment(number).tags["mlflow.experimentKind"]
    assert kind == "custom_model_development"
    client.set_experiment_tag(number, "mlflow.experimentKind", "classification")  # a user's choice
    with Tracker.start(tracking, about, config, logs[2]):
        pass
    assert client.get_experiment(number).tags["mlflow.experimentKind"] == "classification"


def test_the_machine_s_load_is_logged_with_the_metrics_of_a_step(tracking, log):
    """By a worker, of whose metrics the driver sends all."""
    config = StageConfig(tracking=tracking)
    with Tracker.start(tracking, About("train", "first", "A test."), config, log) as driver:
        worker = Tracker(log, system_metrics=True)
        worker.log_metrics({"loss": 3.0}, step=7)
        worker.close()
    client = MlflowClient(tracking.uri)
    logged = client.get_run(driver.run_id).data.metrics
    assert 0 <= logged["system/cpu_utilization_percentage"] <= 100
    assert logged["system/system_memory_usage_megabytes"] > 0
    history = client.get_metric_history(driver.run_id, "system/cpu_utilization_percentage")
    assert [metric.step for metric in history] == [7]


def test_a_failed_stage_ends_its_run_as_failed(tracking, log):
    with (
        pytest.raises(RuntimeError, match="broken"),
        Tracker.start(
            tracking, About("data", "x", "A test."), StageConfig(tracking=tracking), log
        ) as tracker,
    ):
        raise RuntimeError("broken")
    assert MlflowClient(tracking.uri).get_run(tracker.run_id).info.status == "FAILED"


def test_datasets_and_final_models_can_be_followed_from_run_to_run(tracking, log, tmp_path):
    config = StageConfig(tracking=tracking)
    digest = "0123456789abcdef" * 4
    dataset = DatasetUse("3m", digest, "s3://bucket/3m", {"num_rows": 5, "captions": 9}, "training")
    register = tracking.model_copy(update={"register_model": "caft"})
    with Tracker.start(register, About("train", "caft_b 3m", "Trains."), config, log) as train:
        train.log_datasets([dataset])
        for step in (10, 20):
            train.log_metrics({"eval/whole_t2i_r1": step / 100, "train/lr": 0.1}, step)
        train.log_model("caft_b run1.0", 20, "/out/final", {"lr": 0.5})
        train.log_model("caft_b run1.0", 20, "/out/final", {"lr": 0.5})  # a driver that resumes
    scored = EventLog(str(tmp_path), "evaluate")
    with Tracker.start(
        tracking, About("evaluate", "caft_b", "Scores."), config, scored
    ) as evaluate:
        evaluate.log_datasets([dataset])
        scores = {"scenes/whole_t2i_r1": 0.7}
        evaluate.log_metrics(scores, 20, model_of=train.run_id, dataset=dataset)
        evaluate.log_metrics({"scenes/other": 0.1}, 20, model_of="0" * 32)  # of another server
    client = MlflowClient(tracking.uri)
    for run_id in (train.run_id, evaluate.run_id):
        (used,) = client.get_run(run_id).inputs.dataset_inputs
        assert (used.dataset.name, used.dataset.digest) == ("3m", digest[:12])
        assert json.loads(used.dataset.source) == {"uri": "s3://bucket/3m"}
        assert json.loads(used.dataset.profile) == {"num_rows": 5, "captions": 9}
        assert used.tags[0].value == "training"
    run = client.get_run(train.run_id)
    (model,) = client.search_logged_models([run.info.experiment_id])
    assert model.name == "caft_b run1-0"
    assert model.status.value == "READY"
    assert model.params == {"lr": "0.5"}
    assert model.tags["checkpoint"] == "/out/final"
    assert {(m.key, m.value, m.step) for m in model.metrics} == {
        ("eval/whole_t2i_r1", 0.2, 20), ("scenes/whole_t2i_r1", 0.7, 20),
    }  # fmt: skip
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    history = client.get_metric_history(train.run_id, "eval/whole_t2i_r1")
    assert [metric.step for metric in history] == [10, 20]
    (version,) = client.search_model_versions("name = 'caft'")
    assert version.run_id == train.run_id
    assert client.get_run(evaluate.run_id).data.metrics["scenes/other"] == 0.1


def test_a_name_that_no_registered_model_can_have_is_said_before_the_start():
    with pytest.raises(ConfigError, match=r"tracking\.register: 'a/b' is no name of a registered"):
        load_config(StageConfig, None, ["tracking.register=a/b"])


def test_a_run_is_shown_in_tensorboard_and_wandb_too(tracking, tmp_path):
    more = {"also": ["tensorboard", "wandb"], "also_folder": str(tmp_path)}
    stage = f"""
import io
from PIL import Image
from pipelines.config import StageConfig, TrackingConfig
from pipelines.tracking import About, EventLog, Tracker
tracking = TrackingConfig(**{tracking.model_dump() | more})
log, about = EventLog({str(tmp_path / "out")!r}, "train"), About("train", "x", "A test.")
with Tracker.start(tracking, about, StageConfig(tracking=tracking), log) as run:
    for step in (1, 2):
        run.log_metrics({{"loss/total": 3.0 - step}}, step)
    png = io.BytesIO()
    Image.new("RGB", (8, 8)).save(png, "PNG")
    run.log_image(png.getvalue(), "heat maps 1", 2)
"""
    environment = os.environ | {"WANDB_MODE": "offline"}
    done = subprocess.run(
        [sys.executable, "-c", stage], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "left out" not in done.stderr
    (events,) = (tmp_path / "tensorboard").rglob("events.out.tfevents.*")
    (offline,) = (tmp_path / "wandb").rglob("run-*.wandb")
    assert b"loss/total" in events.read_bytes()
    assert b"heat_maps_1" in events.read_bytes()  # TensorBoard has no spaces in names
    assert b"loss/total" in offline.read_bytes()
    client = MlflowClient(tracking.uri)
    (run,) = client.search_runs([client.get_experiment_by_name("caft").experiment_id])
    assert run.data.metrics == {"loss/total": 1.0}
    images = [file.path for file in client.list_artifacts(run.info.run_id, "images")]
    assert all(path.startswith("images/heat maps 1+step+2+") for path in images)
    assert len(images) == 2  # in full, and small


def test_what_another_place_lacks_is_said_before_the_start(tracking, monkeypatch):
    wanted = tracking.model_copy(update={"also": ("wandb",)})
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.invalid")
    with pytest.raises(ConfigError, match=r"'wandb' has no key; set WANDB_API_KEY"):
        check_tracking(wanted)
    monkeypatch.setattr("pipelines.other_trackers.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install wandb`"):
        check_tracking(wanted)
