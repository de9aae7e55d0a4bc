"""Submit against a real cluster: logs, exit codes, chains that go on, detached jobs, errors."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from caft.errors import ConfigError
from pipelines import git
from pipelines.submit.__main__ import job_environment, main
from pipelines.submit.local_cluster import LOOPBACK, REPOSITORY, LocalCluster, Ports, Processes

RECIPE = "configs/data/demo.yaml"


class Submit:
    """`python -m pipelines.submit` in this repository, with a cluster of its own."""

    def __init__(self, folder: Path) -> None:
        self.cluster = LocalCluster(folder, Processes(folder / "pids.json"), Ports.free(), cpus=2)
        self.environment = self.cluster.environment | {"PYTHONPATH": str(REPOSITORY)}
        del self.environment["RAY_ADDRESS"]

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        cluster = [] if "--cluster" in arguments else ["--cluster", self.cluster.address]
        return subprocess.run(
            [sys.executable, "-m", "pipelines.submit", *arguments, *cluster],
            env=self.environment | environment, cwd=REPOSITORY, capture_output=True, text=True,
            timeout=240,
        )  # fmt: skip


@pytest.fixture(scope="module")
def submit(tmp_path_factory):
    submit = Submit(tmp_path_factory.mktemp("cluster"))
    submit.cluster.start()
    yield submit
    submit.cluster.stop()


@pytest.fixture
def photographs(tmp_path) -> list[str]:
    """Overrides of the demo's data recipe: two photographs, and everything below `tmp_path`."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for path in sorted((REPOSITORY / "pipelines/demo/photographs").glob("*.jpg"))[:2]:
        shutil.copy(path, folder)
        (folder / f"{path.stem}.txt").write_text("A photograph. It shows many things.")
    return [
        f"sources=[{{name: two, path: {folder}}}]", f"output={tmp_path}/set",
        f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
    ]  # fmt: skip


def job_of(text: str) -> str:
    return next(line for line in text.splitlines() if "submit: job" in line).split()[-1]


@pytest.mark.slow
def test_a_chain_stops_at_what_fails_and_goes_on_from_there(submit, photographs, tmp_path):
    then = (
        f"train:configs/train/demo.yaml,output={tmp_path}/run,tracking.uri={photographs[-1][13:]}"
    )
    command = ["data", RECIPE, *photographs, "--then", then]
    first = submit(*command)
    assert first.returncode == 2, first.stdout + first.stderr
    assert "files of" in first.stdout
    assert f"data: finished: {tmp_path}/set" in first.stdout
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    tracked = client.search_runs(["1"])[0].data
    assert tracked.tags["git_revision"] == git.revision(REPOSITORY)
    assert "2 rows in split 'train' are fewer than global_batch 32" in first.stdout
    assert "train (2 of 2) ended with code 2" in first.stdout

    second = submit(*command)
    assert second.returncode == 2
    assert "data: finished before" in second.stdout

    listed = submit("list").stdout
    for run in (first, second):
        assert job_of(run.stdout) in listed
        assert listed.count("data-train") == 2
    assert submit("status", job_of(first.stdout)).stdout.startswith("FAILED")
    assert "train (2 of 2) ended" in submit("logs", job_of(first.stdout)).stdout


def test_a_detached_job_runs_until_it_is_stopped(submit, photographs, tmp_path):
    with socket.create_server((LOOPBACK, 0)) as never_answers:
        address = f"http://{LOOPBACK}:{never_answers.getsockname()[1]}/image.jpg"
        (tmp_path / "list.csv").write_text(f"url,caption\n{address},A picture of nothing.\n")
        source = f"sources=[{{name: slow, path: {tmp_path}/list.csv}}]"
        run = submit("data", RECIPE, source, *photographs[1:], "download.timeout_s=200",
                     "--detach", "--name", "slow")  # fmt: skip
        assert run.returncode == 0, run.stdout + run.stderr
        job = job_of(run.stdout)
        assert submit("status", job).stdout.split(":")[0] in ("PENDING", "RUNNING")
        assert submit("stop", job).returncode == 0
        deadline = time.monotonic() + 60
        while not (status := submit("status", job).stdout).startswith("STOPPED"):
            assert time.monotonic() < deadline, status
    assert submit("logs", job, "--follow").returncode == 1


def test_kubernetes_is_reached_through_kubectl(submit, tmp_path):
    """A kubectl that knows the cluster of this test, and its token."""
    token = Path(submit.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    tunnel = Path(__file__).with_name("tunnel.py")
    (tmp_path / "kubectl").write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        f'  *"get secret caft "*) printf %s {token} | base64 -w0 ;;\n'
        '  *"get secret"*) echo "Error: secrets \\"other\\" not found" >&2; exit 1 ;;\n'
        f'  *port-forward*) exec {sys.executable} {tunnel} "$5" {submit.cluster.address} ;;\n'
        "esac\n"
    )
    (tmp_path / "kubectl").chmod(0o700)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    anonymous = {"PATH": path, "RAY_AUTH_TOKEN_PATH": "/nowhere"}
    reached = submit("list", "--cluster", "kuberay:caft", **anonymous)
    assert reached.returncode == 0, reached.stderr
    unknown = submit("list", "--cluster", "kuberay:other", **anonymous)
    assert unknown.returncode == 2
    assert 'kuberay:other: no token for this cluster: Error: secrets "other"' in unknown.stderr


@pytest.mark.slow
def test_a_local_cluster_comes_and_goes_with_the_command(submit, tmp_path):
    shutil.copy(REPOSITORY / RECIPE, tmp_path / "demo.yaml")
    sources = f"sources=[{{name: none, path: {tmp_path}/none.csv}}]"
    run = subprocess.run(
        [sys.executable, "-m", "pipelines.submit", "data", "demo.yaml", sources,
         f"output={tmp_path}/set", "--cluster", "local"],
        env=submit.environment, cwd=tmp_path, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert run.returncode == 2, run.stdout + run.stderr
    assert f"DataError: {tmp_path}/none.csv" in run.stdout
    processes = Processes(tmp_path / "runs" / "cluster" / "pids.json")
    assert processes.names() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "configs/data/none.yaml"], "configs/data/none.yaml: no such configuration file"),
        (["data", RECIPE], "output: 'runs/demo/data' is relative"),
        (["data", RECIPE, "output=/x", "tracking.uri=sqlite:///runs/a.db"],
         "tracking.uri: 'sqlite:///runs/a.db' lies in the temporary working directory"),
        (["data", RECIPE, "output=/x", "--then", "evaluate"], "--then evaluate: must be STAGE"),
        (["list", "--cluster", "http://127.0.0.1:1"], "http://127.0.0.1:1: no job server answers"),
        (["list", "--cluster", "somewhere"], "somewhere: no job server answers"),
        (["list", "--cluster", "ftp://x"], "ftp://x: no job server answers"),
        (["list", "--cluster", "json://x"], "json://x: no job server answers"),
        (["list", "--cluster", "http://x.invalid"], "http://x.invalid: no job server answers"),
        (["list", "--cluster", "x.invalid:6379"], "x.invalid:6379: no job server answers"),
        (["list", "--cluster", "127.0.0.1:1"], "127.0.0.1:1: no job server answers"),
        (["list", "--cluster", "local"], "--cluster local: this cluster ends with its command"),
        (
            ["list", "--cluster", ""],
            "--cluster: say local, an address as http://HEAD:8265, kuberay",
        ),
    ],
)  # fmt: skip
def test_errors_are_one_line(arguments, message, monkeypatch, capsys):
    """Before any cluster is needed, and at once."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("RAY_ADDRESS", "")  # set by the command, and restored
    began = time.monotonic()
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1
    assert time.monotonic() - began < 15


def test_a_job_that_is_not_known_is_named(submit):
    run = submit("logs", "raysubmit_0")
    assert run.returncode == 2
    assert "raysubmit_0" in run.stderr
    assert "knows no such job" in run.stderr


def test_secrets_do_not_travel(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    passed = job_environment(["NCCL_DEBUG=INFO"])
    assert passed["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert passed["NCCL_DEBUG"] == "INFO"
    assert "hidden" not in passed.values()
    for variable in (
        "AWS_SECRET_ACCESS_KEY=x",
        "HF_TOKEN=x",
        "AWS_ACCESS_KEY_ID=x",
        "A=s3://u:p@h/",
    ):
        with pytest.raises(ConfigError, match="looks like a secret"):
            job_environment([variable])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:word@mlflow:5000")
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI: looks like a secret"):
        job_environment([])
    with pytest.raises(ConfigError, match="must be NAME=VALUE"):
        job_environment(["NCCL_DEBUG"])
