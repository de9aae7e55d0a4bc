"""The local cluster: starts with a token, takes a job, refuses taken ports, leaves nothing."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from caft.errors import ClusterError
from pipelines.demo.server import make_server
from pipelines.submit.local_cluster import LocalCluster, Ports, Processes, require_free

JOB = b'{"entrypoint": "true"}'


def address_of(port: int) -> str:
    """Where this machine listens on a port."""
    listening = psutil.CONN_LISTEN
    (place,) = (
        connection.laddr
        for connection in psutil.net_connections("tcp")
        if connection.status == listening and connection.laddr.port == port
    )
    return place.ip


def joined(port: int) -> str:
    """What a program says that joins a cluster with a token it made up."""
    program = f"import ray; ray.init('127.0.0.1:{port}')"
    stranger = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}
    run = [sys.executable, "-c", program]
    return subprocess.run(run, env=os.environ | stranger, capture_output=True, text=True).stderr


def read_anywhere(root: Path, printed: str) -> list[str]:
    """Files of a cluster that hold its token, logs of Ray and its jobs included."""
    token = (root / "ray-token").read_text()
    assert len(token) == 64
    assert token not in printed
    folders = (root, Path((root / "ray-temp").read_text()))
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    assert len(files) > 10
    return [file.name for file in files if token.encode() in file.read_bytes()]


def test_a_port_in_use_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ClusterError, match=f"port {port} for the page is in use.*--page-port"):
            require_free(port, "the page", "--page-port")
        with pytest.raises(ClusterError, match=f"port {port} for the sample server"):
            make_server(tmp_path, port)


def test_a_process_that_took_over_a_pid_is_never_ended(tmp_path):
    processes = Processes(tmp_path / "pids.json")
    (tmp_path / "pids.json").write_text(f'{{"ray": {{"pid": {os.getpid()}, "started": 1}}}}')
    assert not processes.alive("ray")
    processes.stop("ray")  # would end this test
    assert processes.names() == []


def wait_for(port: int) -> None:
    """Until something listens there: the agent comes up after the job server."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)


@pytest.mark.slow
def test_a_job_runs_with_the_token_and_not_without(tmp_path, capfd):
    ports = Ports(gcs=6395, dashboard=8285, agent=52385, client=10000)
    processes = Processes(tmp_path / "pids.json")
    cluster = LocalCluster(tmp_path, processes, ports, cpus=1)
    cluster.start()
    try:
        assert (tmp_path / "ray-token").stat().st_mode & 0o777 == 0o600
        for door in (
            f"{ports.dashboard}/api/jobs/",
            f"{ports.dashboard}/nodes?view=summary",
            f"{ports.dashboard}/api/v0/logs",
            f"{ports.agent}/api/job_agent/jobs/",
        ):
            wait_for(int(door.partition("/")[0]))
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(f"http://127.0.0.1:{door}", JOB, timeout=10)
        assert address_of(ports.dashboard) == "127.0.0.1"
        assert "Failed to connect to Ray cluster" in joined(ports.gcs)
        assert cluster.submit(["-c", "import caft; print('caft', caft.__version__)"]) == 0
        assert "caft 0.1.0" in capfd.readouterr().out
        assert cluster.submit(["-c", "raise SystemExit(3)"]) != 0
        printed = "".join(capfd.readouterr())
        assert read_anywhere(tmp_path, printed) == ["ray-token"]
    finally:
        temporary = Path((tmp_path / "ray-temp").read_text())
        cluster.stop()
    assert not processes.alive("ray")
    assert not temporary.exists()
