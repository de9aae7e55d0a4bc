"""Event logs on real servers that are away, refuse, forget or are others than before: every metric
is there once, every run ends, and nothing is said twice."""

import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import boto3
import pytest
from mlflow import MlflowClient
from mlflow_support import free_port, start_server

from pipelines import storage
from pipelines.config import StageConfig, TrackingConfig
from pipelines.runs import KEY, STAND_IN
from pipelines.tracking import About, EventLog, Tracker, send_rest
from pipelines.tracking.events import Writer

ABOUT = About("train", "x", "A test.")


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch):
    monkeypatch.setattr("pipelines.tracking.tracker.EVERY_S", 0.1)
    monkeypatch.setattr("pipelines.tracking.tracker.EVERY_REMOTE_S", 0.2)
    monkeypatch.setattr("pipelines.tracking.tracker.RETRY_AFTER_S", 0.2)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    port = free_port()
    process = start_server(tmp_path_factory.mktemp("server"), port)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait()


@pytest.fixture(params=["server", "database"])
def real(request, tmp_path) -> TrackingConfig:
    """A server by HTTP, and a database without one; an experiment of the test's own."""
    if request.param == "database":
        return TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db", experiment=tmp_path.name)
    return TrackingConfig(uri=request.getfixturevalue("server"), experiment=tmp_path.name)


@pytest.fixture
def impatient(monkeypatch) -> None:
    monkeypatch.setattr("pipelines.tracking.tracker.SEND_WITHIN_S", 0.5)


@pytest.fixture
def nobody(impatient) -> TrackingConfig:
    """At a wrong address."""
    return TrackingConfig(uri=f"http://127.0.0.1:{free_port()}")


@pytest.fixture
def log(tmp_path) -> EventLog:
    return EventLog(str(tmp_path / "out"), "train")


def start(tracking: TrackingConfig, log: EventLog, **more) -> Tracker:
    return Tracker.start(tracking, ABOUT, StageConfig(tracking=tracking), log, **more)


def runs(tracking: TrackingConfig) -> list:
    """Those that are not deleted, the oldest first."""
    client = MlflowClient(tracking.uri)
    experiment = client.get_experiment_by_name(tracking.experiment)
    return client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])


def history(tracking: TrackingConfig, run_id: str, key: str = "loss") -> list[tuple[int, float]]:
    logged = MlflowClient(tracking.uri).get_metric_history(run_id, key)
    return sorted((metric.step, metric.value) for metric in logged)


def until(happened, within_s: float = 120.0) -> None:
    deadline = time.monotonic() + within_s
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ended_by(program: str, **values) -> subprocess.CompletedProcess:
    """A process with a tracker, `tracker`, that runs `program`, and is killed at its end."""
    code = f"""
import os, signal
from pipelines.config import StageConfig, TrackingConfig
from pipelines.tracking import About, EventLog, Tracker, upload
{values.pop("before", "")}
tracking, log = TrackingConfig(**{values["tracking"].model_dump(exclude={"register_model"})}), None
log = EventLog({values["log"].output!r}, {values["log"].name!r})
about = About("data", "x", "A test.")
tracker = Tracker.start(tracking, about, StageConfig(tracking=tracking), log)
{program}
tracker.flush()
print(tracker.run_id, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    return done


def test_what_a_killed_driver_could_not_send_the_next_stage_does(tmp_path, log):
    port = free_port()
    tracking = TrackingConfig(uri=f"http://127.0.0.1:{port}")  # nobody listens there yet
    data = EventLog(str(tmp_path / "data"), "data")
    killed = ended_by('tracker.log_metrics({"rows": 5.0}, 1)', tracking=tracking, log=data)
    assert killed.stderr.count("does not take metrics") == 1
    key = killed.stdout.strip()
    process = start_server(tmp_path, port)
    try:
        with start(tracking, log, links={"data": key}, inputs=[data.output]) as tracker:
            tracker.log_metrics({"loss": 1.0}, 1)
            until(lambda: len(runs(tracking)) == 2)
        train, made = runs(tracking)
        assert (made.data.tags["stage"], made.info.status) == ("data", "KILLED")
        assert made.data.metrics == {"rows": 5.0}
        assert made.data.tags[KEY] == key
        with start(tracking, log, links={"data": key}):  # its first start came before that run
            pass
        (train,) = [run for run in runs(tracking) if run.data.tags["stage"] == "train"]
        assert train.info.status == "FINISHED"
        assert train.data.tags["data_run_id"] == made.info.run_id
    finally:
        process.terminate()
        process.wait()


def test_a_server_that_comes_back_gets_everything_and_two_starts_warn_once(
    tmp_path, log, monkeypatch, capfd
):
    port = free_port()
    tracking = TrackingConfig(uri=f"http://127.0.0.1:{port}")
    for step in (1, 2):
        tracker = start(tracking, log)
        tracker.log_metrics({"loss": float(step)}, step)
        with monkeypatch.context() as patch:
            patch.setattr("pipelines.tracking.tracker.SEND_WITHIN_S", 0.5)
            tracker.close("FAILED")
    assert capfd.readouterr().err.count("does not take metrics") == 1
    tracker = start(tracking, log)
    process = start_server(tmp_path, port)
    try:
        until(lambda: tracker.run_id != log.about()["key"])
        tracker.close("FINISHED")
        (run,) = runs(tracking)
        assert (run.info.run_id, run.info.status) == (tracker.run_id, "FINISHED")
        assert history(tracking, run.info.run_id) == [(1, 1.0), (2, 2.0)]
    finally:
        process.terminate()
        process.wait()


@pytest.mark.parametrize("killed_at", ["", "sent_later"])
def test_a_process_killed_between_sending_and_noting_it_doubles_nothing(killed_at, log, tracking):
    """Without a note all is sent again: at once, or after the artifacts too."""
    noted = f"""
original = upload.Uploader.save
def save(self):
    state = self._state
    is_noted = state.get("sent") and (not {killed_at!r} or len(state.get({killed_at!r}, ())) > 0)
    os.kill(os.getpid(), signal.SIGKILL) if is_noted else original(self)
upload.Uploader.save = save
"""
    program = """
import io, time
from PIL import Image
from pipelines.tracking import DatasetUse
png = io.BytesIO()
Image.new("RGB", (8, 8)).save(png, "PNG")
use = DatasetUse("3m", "0123", "/d", {"num_rows": 1}, "training")
tracker.log_datasets([use])
tracker.log_image(png.getvalue(), "heat maps 1", 2)
tracker.log_model("m", 2, "/out/final", {"lr": 0.5})
for step in (1, 2):
    tracker.log_metrics({"loss": float("nan") if step == 1 else 2.0, "eval/a": 0.5}, step)
tracker.flush()
time.sleep(60)
"""
    ended_by(program, tracking=tracking, log=log, before=noted)
    with start(tracking, log):
        pass
    storage.delete_file(log.path("sent.json"))  # nor is it known that all was sent now
    with start(tracking, log) as tracker:
        pass
    client = MlflowClient(tracking.uri)
    (run,) = runs(tracking)
    assert run.info.run_id == tracker.run_id
    assert [step for step, _ in history(tracking, tracker.run_id)] == [1, 2]
    assert history(tracking, tracker.run_id, "eval/a") == [(1, 0.5), (2, 0.5)]
    assert len(client.list_artifacts(tracker.run_id, "images")) == 2  # in full, and small
    assert len(run.inputs.dataset_inputs) == 1
    (model,) = client.search_logged_models([run.info.experiment_id])
    assert [(m.key, m.value) for m in model.metrics] == [("eval/a", 0.5)]


def test_a_run_deleted_in_the_middle_has_a_new_one_that_names_it(real, log, capfd):
    client = MlflowClient(real.uri)
    with start(real, log) as tracker:
        tracker.log_metrics({"loss": 1.0}, 1)
        first = tracker.run_id
        until(lambda: history(real, first))
        client.delete_run(first)
        tracker.log_metrics({"loss": 2.0}, 2)
        until(lambda: tracker.run_id != first)
    (run,) = runs(real)
    assert run.info.status == "FINISHED"
    assert history(real, run.info.run_id) == [(1, 1.0), (2, 2.0)]
    assert run.data.tags["caft_instead_of"] == first
    assert f"in place of: `{first}`" in run.data.tags["mlflow.note.content"]
    said = capfd.readouterr().err
    assert said.count("tracking:") == said.count(f"has no run {first} any more") == 1
    client.delete_run(run.info.run_id)  # all was sent: what a user deletes stays deleted
    send_rest(real, log.output)
    assert runs(real) == []


def test_an_experiment_deleted_in_the_middle_is_said_once_and_heals(real, log, impatient, capfd):
    client = MlflowClient(real.uri)
    number = client.get_experiment_by_name
    with start(real, log) as tracker:
        first, number = tracker.run_id, number(real.experiment).experiment_id
        client.delete_experiment(number)
        for step in (1, 2):
            tracker.log_metrics({"loss": float(step)}, step)
        time.sleep(1)  # it is tried some times
    said = capfd.readouterr().err
    assert said.count("tracking:") == said.count("was deleted; bring it back by `mlflow exp") == 1
    client.restore_experiment(number)
    send_rest(real, log.output)
    (run,) = runs(real)
    assert (run.info.run_id, run.info.status) == (first, "FINISHED")
    assert history(real, first) == [(1, 1.0), (2, 2.0)]


@pytest.mark.parametrize("before", ["nobody", "tracking"])
def test_another_server_gets_the_whole_log(before, request, real, log, monkeypatch, capfd):
    """One at a wrong address; and one that has the run up to here."""
    wrong = request.getfixturevalue(before)
    tracker = start(wrong, log)
    tracker.log_metrics({"loss": 1.0}, 1)
    tracker.close()  # as of a driver that was killed: without a status
    monkeypatch.undo()
    first = tracker.run_id
    right = real.model_copy(update={"experiment": f"{real.experiment}-{before}"})
    with start(right, log) as again:
        again.log_metrics({"loss": 2.0}, 2)
    (run,) = runs(right)
    assert history(right, run.info.run_id) == [(1, 1.0), (2, 2.0)]
    assert run.data.params["progress_every_s"] == "10.0"
    if before == "tracking":
        assert run.data.tags["caft_instead_of"] == first
        assert MlflowClient(wrong.uri).get_run(first).info.status == "KILLED"
    capfd.readouterr()
    send_rest(right, log.output, "FINISHED")  # a stage that finished before has nothing to say
    assert capfd.readouterr().err == ""
    assert len(runs(right)) == 1


def test_artifacts_that_the_store_refuses_hold_up_no_metric(log, bucket, tracking, capfd):
    """It has no such bucket at first: two starts say so once, and what opens the output sends."""
    place = f"missing-{uuid.uuid4().hex[:12]}"
    tracking = tracking.model_copy(update={"artifact_root": f"s3://{place}/artifacts"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_S3_ENDPOINT_URL", os.environ["AWS_ENDPOINT_URL"])
        for step in (1, 2):
            with start(tracking, log) as tracker:
                tracker.log_table([{"a": step}], "scores")
                tracker.log_metrics({"loss": float(step)}, step)
            (run,) = runs(tracking)
            assert run.info.status == "FINISHED"
            assert len(history(tracking, run.info.run_id)) == step
        said = capfd.readouterr().err
        assert said.count("tracking:") == said.count("does not take artifacts") == 1
        boto3.client("s3").create_bucket(Bucket=place)
        send_rest(tracking, log.output, "FINISHED")
    objects = boto3.client("s3").list_objects_v2(Bucket=place)["Contents"]
    assert [o["Key"] for o in objects if o["Key"].endswith("/artifacts/tables/scores.json")]
    assert capfd.readouterr().err.count("tracking:") == 0


def test_an_output_in_a_bucket_holds_its_log_in_pieces(bucket, tracking):
    log = EventLog(bucket, "train")
    wrong = TrackingConfig(uri=f"http://127.0.0.1:{free_port()}")
    small = "from pipelines.tracking import events\nevents.PIECE_BYTES = 200"
    program = """
for step in range(9):
    tracker.log_metrics({'loss': 1.0}, step)
    tracker.flush()
"""
    killed = ended_by(program, tracking=wrong, log=log, before=small)
    pieces = storage.list_files(log.folder, ".jsonl")
    assert len(pieces) > 2
    assert log.last_step() == 0  # of what trainings log at each step
    with start(tracking, log) as tracker:
        tracker.log_image(picture(), "heat maps 1", 2)
        tracker.log_metrics({"train/samples_seen": 8.0}, 9)
    assert log.last_step() == 9
    (run,) = runs(tracking)
    assert run.data.tags[KEY] == killed.stdout.strip()
    assert history(tracking, run.info.run_id) == [(step, 1.0) for step in range(9)]
    assert len(MlflowClient(tracking.uri).list_artifacts(run.info.run_id, "images")) == 2


def test_a_metric_that_the_server_never_takes_is_left_out_alone(real, log, capfd):
    with start(real, log) as tracker:
        tracker.log_metrics({"no % such ? name": 1.0}, 1)
        tracker.log_metrics({"loss": 1.0}, 1)
        Writer(log).append({"file": "../secret.txt", "folder": None})  # as of a stranger's log
        storage.write_bytes(f"{log.output}/../secret.txt", b"secret")
    (run,) = runs(real)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"loss": 1.0}
    assert MlflowClient(real.uri).list_artifacts(run.info.run_id) == []
    said = capfd.readouterr().err
    assert said.count("refuses metrics of the run") == said.count("is no file of the output") == 1


def test_half_a_line_and_a_damaged_note_cost_what_they_held_alone(tracking, log):
    with start(tracking, log) as tracker:
        tracker.log_metrics({"loss": 1.0}, 1)
    (file,) = storage.list_files(log.folder, ".jsonl")
    with open(log.path(file), "a") as stream:
        stream.write('{"metrics": {"lo\n{"metrics": {"loss": 2.0}, "step": 2, "time_ms": 5}\n{"sta')
    Path(log.path("sent.json")).write_text("[")
    send_rest(tracking, log.output)
    (run,) = runs(tracking)
    assert history(tracking, run.info.run_id) == [(1, 1.0), (2, 2.0)]


@pytest.mark.parametrize("kind", ["stand-in", "run"])
def test_a_run_of_an_earlier_version_is_resumed_with_what_its_checkpoint_kept(kind, tracking, log):
    """It was begun with a server, or without one, whose stand-in another machine made a run of."""
    client = MlflowClient(tracking.uri)
    number = client.create_experiment(tracking.experiment)
    name = f"pending-{'0' * 32}"
    made = client.create_run(number, tags={STAND_IN: name} if kind == "stand-in" else {})
    old = made.info.run_id
    client.log_metric(old, "train/samples_seen", 24.0, step=3)
    unsent = {"run_id": name, "metrics": {"loss": 2.0}, "step": 4, "time_ms": 5}
    with start(tracking, log, earlier=name if kind == "stand-in" else old) as tracker:
        tracker.record_again([json.dumps(unsent)])
    assert tracker.run_id == old
    assert log.last_step() == 3
    assert history(tracking, old) == [(4, 2.0)]
    assert len(runs(tracking)) == 1


def test_a_child_finds_its_parent_whichever_was_there_first(
    nobody, tracking, tmp_path, monkeypatch
):
    logs = [EventLog(str(tmp_path / "out"), name) for name in ("sweep", "train")]
    parent = start(nobody, logs[0])
    parent.close("FINISHED")
    monkeypatch.undo()
    below = tracking.model_copy(update={"parent_run_id": parent.run_id})
    with start(below, logs[1]) as child:
        pass
    send_rest(tracking, logs[0].output)
    (made,) = [run for run in runs(tracking) if run.info.run_id != child.run_id]
    tags = MlflowClient(tracking.uri).get_run(child.run_id).data.tags
    assert tags["mlflow.parentRunId"] == made.info.run_id


def test_an_input_that_is_another_s_to_send_is_left_alone(tracking, log, tmp_path, real):
    data = EventLog(str(tmp_path / "data"), "data")
    with start(real, data):
        pass
    before = storage.read_bytes(data.path("sent.json"))
    there = len(runs(real))
    Writer(data).append({"metrics": {"rows": 1.0}, "step": 1, "time_ms": 5})
    with start(tracking, log, inputs=[data.output, str(tmp_path / "none")]):
        pass
    assert storage.read_bytes(data.path("sent.json")) == before  # on another server
    assert len(runs(tracking)) == 1
    assert len(runs(real)) == there


def picture() -> bytes:
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    return stream.getvalue()
