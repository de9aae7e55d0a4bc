"""A shared MLflow server lets nobody in without a password, and stages log to it with one."""

import base64
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.server.auth.client import AuthServiceClient
from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore
from mlflow_support import free_port, start_server

from caft.errors import ConfigError
from pipelines.config import StageConfig, TrackingConfig
from pipelines.runs import find_run, read_artifacts
from pipelines.tracking import About, EventLog, Tracker, send_rest

PASSWORD = "a-long-password-of-the-admin"
STAGES = "a-long-password-of-the-stages"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a server set up as docs/cluster.md says."""
    folder = tmp_path_factory.mktemp("server")
    settings = folder / "auth.ini"
    settings.write_text(
        "[mlflow]\ndefault_permission = NO_PERMISSIONS\n"
        f"database_uri = sqlite:///{folder / 'auth.db'}\nadmin_username = admin\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    make_user(settings, "stages", STAGES)
    port = free_port()
    process = start_server(
        folder,
        port,
        "--app-name=basic-auth",
        MLFLOW_AUTH_CONFIG_PATH=str(settings),
        MLFLOW_AUTH_ADMIN_PASSWORD=PASSWORD,
        MLFLOW_FLASK_SERVER_SECRET_KEY="for signed forms",
    )
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait()


def make_user(settings: Path, name: str, password: str) -> subprocess.CompletedProcess[str]:
    own = {"MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": password}
    return subprocess.run(
        [sys.executable, "-m", "pipelines.tracking_user"], capture_output=True, text=True,
        env=os.environ | own | {"MLFLOW_AUTH_CONFIG_PATH": str(settings)},
    )  # fmt: skip


def test_the_user_of_the_stages_logs_and_rules_nothing(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "stages")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", STAGES)
    client = MlflowClient(server)
    experiment = client.create_experiment("of the stages")
    run = client.create_run(experiment).info.run_id
    client.log_metric(run, "loss", 1.0)
    assert client.get_run(run).data.metrics == {"loss": 1.0}
    with pytest.raises(MlflowException, match=r"(?i)permission denied|403"):
        AuthServiceClient(server).create_user("another", "a-long-password-of-another")


def test_a_second_start_sets_the_password_and_no_administrator_is_taken(server, tmp_path):
    settings = tmp_path / "auth.ini"
    settings.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{tmp_path / 'auth.db'}\n"
    )
    assert make_user(settings, "stages", STAGES).returncode == 0
    assert make_user(settings, "stages", "another-long-password").returncode == 0
    users = SqlAlchemyStore()
    users.init_db(f"sqlite:///{tmp_path / 'auth.db'}")
    assert users.authenticate_user("stages", "another-long-password")
    assert not users.get_user("stages").is_admin
    users.create_user("boss", PASSWORD, is_admin=True)
    refused = make_user(settings, "boss", STAGES)
    assert refused.returncode == 2
    assert "boss is an administrator; name another user" in refused.stderr
    assert users.authenticate_user("boss", PASSWORD)


def status(address: str, credentials: str | None) -> int:
    headers = {"Content-Type": "application/json"}
    if credentials is not None:
        headers["Authorization"] = f"Basic {base64.b64encode(credentials.encode()).decode()}"
    request = urllib.request.Request(
        f"{address}/api/2.0/mlflow/experiments/search", b'{"max_results": 10}', headers
    )
    try:
        return urllib.request.urlopen(request, timeout=20).status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize(
    "credentials", [None, "admin:", "admin:wrong", "admin:password1234", f"other:{PASSWORD}", ":"]
)
def test_nobody_gets_in_without_the_password(server, credentials):
    assert status(server, credentials) == 401


@pytest.mark.slow
def test_a_stage_logs_with_the_password_of_its_environment(server, tmp_path, monkeypatch, capfd):
    tracking = TrackingConfig(uri=server)
    first, second = (EventLog(str(tmp_path / name), "train") for name in ("first", "second"))
    config = StageConfig(tracking=tracking)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.tracking.tracker.SEND_WITHIN_S", 1.0)
        with Tracker.start(
            tracking, About("train", "x", "A test."), config, first
        ) as refused:  # the stage goes on
            refused.log_metrics({"loss": 2.0}, step=1)
    said = capfd.readouterr().err
    assert "does not take metrics" in said
    with pytest.raises(ConfigError, match=r"tracking\.uri"):
        read_artifacts(tracking, "a" * 32, ["report.html"])

    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "report.html").write_text("a report")
    with Tracker.start(tracking, About("train", "y", "A test."), config, second) as accepted:
        accepted.log_metrics({"loss": 1.0}, step=1)
        accepted.log_artifact(f"{second.output}/report.html")
    send_rest(tracking, first.output)
    sent = MlflowClient(server).get_run(find_run(tracking, first.about()["key"]))
    assert sent.data.metrics == {"loss": 2.0}
    run = MlflowClient(server).get_run(accepted.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"loss": 1.0}
    assert read_artifacts(tracking, accepted.run_id, ["report.html"]) == {
        "report.html": b"a report"
    }
    assert PASSWORD not in said + "".join(capfd.readouterr())
    stored = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert not [data for data in stored if PASSWORD.encode() in data or b"wrong" in data]
