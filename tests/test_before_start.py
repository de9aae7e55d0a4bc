"""What can be known before the start is refused there, in one line that names key and remedy."""

import http.server
import os
import socket
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow_support import free_port
from tests_support import tiny_config

from caft.config import Config, load_config
from caft.errors import ClusterError, ConfigError
from caft.tokenizer import require_vocabulary
from pipelines import storage, user_paths
from pipelines.config import TrackingConfig
from pipelines.data.config import DataConfig
from pipelines.evaluate.config import EvaluateConfig
from pipelines.private import LONGEST_SOCKET, require_short_sockets
from pipelines.runs import check_tracking, create_run
from pipelines.sweep.config import SweepConfig
from pipelines.train.config import OptimizerConfig, TrainConfig
from pipelines.train.held_out import check_best_metric
from pipelines.train.schedule import check_schedule

CONFIGS = Path(__file__).parents[1] / "configs"
TRAIN = CONFIGS / "train" / "demo.yaml"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs=.inf", "epochs: Input should be a finite number"),
        ("optimizer.lr=.nan", r"optimizer\.lr: Input should be a finite number"),
        ("optimizer.weight_decay=.inf", r"optimizer\.weight_decay: .* finite number"),
        ("optimizer.betas=[0.9, 1.0]", r"optimizer\.betas\.1: .* less than 1"),
        ("optimizer.betas=[-0.1, 0.9]", r"optimizer\.betas\.0: .* greater than or equal to 0"),
        ("optimizer.betas=[.nan, 0.9]", r"optimizer\.betas\.0: .* finite number"),
        ("progress_every_s=.inf", "progress_every_s: .* finite number"),
        ("seed=-1", "seed: .* greater than or equal to 0"),
        ("seed=9223372036854775808", "seed: .* less than 9223372036854775808"),
        ("subset={rows: 5, seed: 99999999999999999999}", r"subset\.seed: .* less than"),
    ],
)
def test_numbers_that_no_training_can_use(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(TrainConfig, TRAIN, [override])


def test_every_schema_takes_finite_numbers_alone():
    def below(schema):
        return [schema, *(kind for child in schema.__subclasses__() for kind in below(child))]

    assert {DataConfig, TrainConfig, EvaluateConfig, SweepConfig} <= set(below(Config))
    assert [
        kind for kind in below(Config) if kind.model_config.get("allow_inf_nan") is not False
    ] == []


def test_a_vocabulary_smaller_than_the_tokenizer_s():
    text = tiny_config().text
    require_vocabulary(text)
    require_vocabulary(text.model_copy(update={"vocab_size": 50_000}))
    with pytest.raises(ConfigError, match=r"vocab_size: 49,000, but tokenizer 'clip' has 49,408"):
        require_vocabulary(text.model_copy(update={"vocab_size": 49_000}))
    with pytest.raises(ConfigError, match=r"text\.tokenizer: 'clap' is not shipped; known: .*clip"):
        require_vocabulary(text.model_copy(update={"tokenizer": "clap"}))


def test_a_warm_up_longer_than_the_run():
    check_schedule(2000, OptimizerConfig(warmup_steps=2000))
    with pytest.raises(ConfigError, match=r"warmup_steps: .* 2,000 .* run of 1,999; lower"):
        check_schedule(1999, OptimizerConfig(warmup_steps=2000))


@pytest.mark.parametrize(
    ("metric", "evaluation", "message"),
    [
        ("loss/total", "null", None),
        ("loss/whole", "null", None),
        ("eval/blended_t2i_r1", "{}", None),
        ("loss/hole", "null", "'loss/hole' is never logged with a checkpoint; known: loss/total"),
        ("train/lr", "{}", r"'train/lr' is never .*; known: .*eval/blended_t2i_r1"),
        ("eval/blended_t2i_r1", "null", "; set evaluation"),
    ],
)
def test_checkpoints_kept_by_a_metric_that_is_never_logged(metric, evaluation, message):
    changes = ["checkpoint.keep_best=1", f"checkpoint.best_metric={metric}"]
    config = load_config(TrainConfig, TRAIN, [*changes, f"evaluation={evaluation}"])
    if message is None:
        check_best_metric(config, tiny_config())
        return
    with pytest.raises(ConfigError, match=message):
        check_best_metric(config, tiny_config())


def test_a_loss_that_the_model_leaves_out_keeps_no_checkpoint():
    config = load_config(
        TrainConfig, TRAIN, ["checkpoint.keep_best=1", "checkpoint.best_metric=loss/whole"]
    )
    with pytest.raises(ConfigError, match="'loss/whole' is never logged"):
        check_best_metric(config, tiny_config(losses={"whole": "none"}, image={"encoder": "flat"}))


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("localhost:5000", r"names no server .*; write http://localhost:5000$"),
        ("127.0.0.1:5000", r"write http://127\.0\.0\.1:5000$"),
        (
            "mlflow.example.org",
            r"write sqlite:///mlflow\.example\.org, or http://mlflow\.example\.org",
        ),
        ("runs/mlflow.db", r"write sqlite:///runs/mlflow\.db"),
        ("", "names no server or database"),
        ("ftp://host/mlflow", "names no server or database"),
        ("http://", "names no host"),
        ("http://127.0.0.1:99999", "Invalid url"),
        ("sqlite://mlflow.db", "with three slashes"),
        ("sqlite:mlflow.db", "with three slashes"),
        ("sqlite:///{folder}/what?.db", "follows '[?]' would not be part of the file's name"),
        (
            "file://{folder}/runs",
            r"a folder, which MLflow does not log to any more; write sq",
        ),
        ("sqlite:///{folder}/text.db", "file is not a database"),
        ("sqlite:///{folder}/text.db/below/mlflow.db", "cannot be written"),
        ("sqlite:///{folder}/old.db", r"another version of MLflow; .* `mlflow db upgrade sqlite"),
        ("sqlite:///{folder}/deleted.db", r"tracking\.experiment: 'caft' was deleted; .*restore"),
        ("http://127.0.0.1:{other}", r"tracking\.uri: http://127"),
    ],
)
def test_a_tracking_address_that_can_never_work(uri, message, databases):
    folder, other = databases
    tracking = TrackingConfig(uri=uri.format(folder=folder, other=other))
    with pytest.raises(ConfigError, match=message) as caught:
        check_tracking(tracking)
    assert "\n" not in str(caught.value)
    if "was deleted" in message or "another version" in message:
        with pytest.raises(ConfigError, match=message):
            create_run(tracking, "train x", "key", None)


@pytest.fixture(scope="module")
def databases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("databases")
    (folder / "text.db").write_text("no database at all\n" * 100)
    client = MlflowClient(f"sqlite:///{folder / 'deleted.db'}")
    number = client.create_experiment("caft")
    with sqlite3.connect(folder / "deleted.db") as known, sqlite3.connect(folder / "old.db") as old:
        known.backup(old)
        old.execute("update alembic_version set version_num = '0c779009ac13'")
    client.delete_experiment(number)
    other = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    yield folder, other.server_port
    other.shutdown()


def test_a_server_that_does_not_answer_now_may_do_so_later():
    check_tracking(TrackingConfig(uri=f"http://127.0.0.1:{free_port()}"))


def test_a_relative_address_is_one_place_for_driver_and_workers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = TrackingConfig(uri="sqlite:///runs/mlflow.db", artifact_root="runs/files")
    found = check_tracking(relative)
    assert found.uri == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert found.artifact_root == f"{tmp_path}/runs/files"
    assert check_tracking(found) == found


def test_a_database_that_would_vanish_with_its_job(tmp_path, monkeypatch):
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "a"
    copy.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for uri, job in (
        (f"sqlite:///{copy}/mlflow.db", ""),
        ("sqlite:///runs/mlflow.db", "raysubmit_1"),
    ):
        monkeypatch.setenv("RAY_JOB_SUBMISSION_ID", job)
        with pytest.raises(
            ConfigError, match=r"tracking\.uri: .* would vanish with it; set MLFLOW_"
        ):
            check_tracking(TrackingConfig(uri=uri))
    monkeypatch.setenv("RAY_JOB_SUBMISSION_ID", "raysubmit_1")
    check_tracking(TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db"))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "output: is empty"),
        ("  ", "output: is empty"),
        ("~nobody-of-that-name/run", "there is no such home"),
        ("{file}/run", r"output: .*/run: .*/note\.txt is a file, not a folder"),
        ("{file}/run/deeper", r"note\.txt is a file, not a folder"),
        ("{file}", r"note\.txt is a file, not a folder"),
        ("file://{file}/run", r"note\.txt is a file, not a folder"),
    ],
)
def test_outputs_that_cannot_be(path, message, tmp_path):
    (tmp_path / "note.txt").write_text("x")
    with pytest.raises(ConfigError, match=message):
        user_paths.usable_path(path.format(file=tmp_path / "note.txt"), "output", folder=True)


def test_the_home_of_a_path_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_paths.usable_path("~/run", "output", folder=True) == f"{tmp_path}/run"
    (tmp_path / "note.txt").write_text("x")
    assert storage.read_bytes("~/note.txt") == b"x"


def test_a_folder_too_deep_for_ray_s_sockets(tmp_path):
    deep = tmp_path / ("x" * (108 - len(str(tmp_path)) - len(LONGEST_SOCKET)))
    with pytest.raises(ClusterError, match=r"set RAY_TMPDIR to a folder with a shorter path"):
        require_short_sockets(str(deep))
    require_short_sockets("/tmp/ray")
    result = connected(TMPDIR=str(tmp_path / ("y" * 80)))
    assert_one_line(result, "ClusterError: ", "set RAY_TMPDIR to a folder with a shorter path")


def connected(**variables: str) -> subprocess.CompletedProcess[str]:
    """What a stage says that joins its cluster."""
    program = (
        "from pipelines.config import command\n"
        "from pipelines.workers import connect\n"
        "raise SystemExit(command(lambda: connect() or 0))"
    )
    environment = os.environ | variables
    return subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def assert_one_line(result, *words: str) -> None:
    assert result.returncode == 2, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert all(word in last for word in words), result.stderr
    assert "Traceback" not in result.stderr


def test_an_address_at_which_no_ray_answers():
    silent = socket.create_server(("127.0.0.1", 0))
    other = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    addresses = [
        f"127.0.0.1:{free_port()}",
        f"ray://127.0.0.1:{free_port()}",
        f"127.0.0.1:{silent.getsockname()[1]}",
        f"127.0.0.1:{other.server_port}",
        "http://127.0.0.1:8265",
    ]
    results = {}
    threads = [
        threading.Thread(target=lambda a=a: results.update({a: connected(RAY_ADDRESS=a)}))
        for a in addresses
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for address in addresses[:-1]:
        assert_one_line(results[address], f"ClusterError: RAY_ADDRESS {address}: no Ray cluster")
    assert_one_line(results[addresses[-1]], "is that of a job server")
    silent.close()
    other.shutdown()


UNNAMED = ["unshare", "--user", "--map-user=54321", "--map-group=54321"]


def unnamed(program: str, **variables: str) -> str:
    """What a program prints for a user id that /etc/passwd does not know."""
    if subprocess.run([*UNNAMED, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this system makes no user namespaces")
    known = {"HOME", "USER", "LOGNAME", "LNAME", "USERNAME"}
    environment = {k: v for k, v in os.environ.items() if k not in known} | variables
    command = [*UNNAMED, sys.executable, "-c", program]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_user_without_name_and_home(tmp_path):
    program = """
import pipelines, getpass
from pathlib import Path
from pipelines.config import StageConfig, TrackingConfig
from pipelines.tracking import About, EventLog, Tracker
tracking = TrackingConfig()
about = About("data", "x", "A test.")
log = EventLog(OUTPUT, "data")
with Tracker.start(tracking, about, StageConfig(tracking=tracking), log) as tracker:
    tracker.log_metrics({"rows": 1.0})
print(getpass.getuser(), Path("~").expanduser().is_dir())
""".replace("OUTPUT", repr(str(tmp_path / "out")))
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    variables = {"MLFLOW_TRACKING_URI": uri, "TMPDIR": str(tmp_path)}
    assert unnamed(program, **variables).split() == ["uid-54321", "True"]
    assert (tmp_path / "caft-home-54321").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("named", ["", "intranet.example.org"])
def test_nothing_on_this_machine_is_asked_through_a_proxy(named, databases):
    program = f"""
import pipelines, requests, urllib.request
requests.get("http://127.0.0.1:{databases[1]}/", timeout=10).raise_for_status()
urllib.request.urlopen("http://localhost:{databases[1]}/", timeout=10)
import os; print(os.environ["no_proxy"], os.environ["NO_PROXY"])
"""
    proxy = f"http://127.0.0.1:{free_port()}"
    proxies = dict.fromkeys(("http_proxy", "HTTPS_PROXY", "all_proxy"), proxy)
    environment = os.environ | proxies | {"no_proxy": named}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(named or "127.0.0.0/8") >= 1
