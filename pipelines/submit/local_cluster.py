"""A local Ray cluster of one node, safe by default, and job submission to it.
Started as processes kept by pid and start time, so that nothing else is ever ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from caft.errors import ClusterError
from pipelines.private import RAYS, make_token, require_short_sockets
from pipelines.processes import start_time

START_WITHIN_S = 90.0
STOP_WITHIN_S = 20.0
LEAVE_WITHIN_S = 5.0
LOOPBACK = "127.0.0.1"
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Ports:
    """Every fixed port of the local cluster, outside the range 10002 to 19999 that Ray deals to
    its workers; it picks free ones for the rest."""

    gcs: int = 6385
    dashboard: int = 8275
    agent: int = 52375
    client: int = 10001

    @classmethod
    def free(cls) -> Ports:
        """Ports on which nothing listens now."""
        with ExitStack() as stack:
            probes = [stack.enter_context(socket.socket()) for _ in range(4)]
            for probe in probes:
                probe.bind((LOOPBACK, 0))
            return cls(*(probe.getsockname()[1] for probe in probes))

    @property
    def all(self) -> dict[str, int]:
        return {
            "Ray": self.gcs,
            "Ray's dashboard": self.dashboard,
            "Ray's dashboard agent": self.agent,
            "Ray's client": self.client,
        }


def require_free(port: int, what: str, option: str) -> None:
    """Raises ClusterError naming the port when something listens on it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            raise ClusterError(
                f"port {port} for {what} is in use; end what listens there or choose another "
                f"with {option}"
            ) from None


class Processes:
    """The processes a demo started: name -> pid and start time, in one file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def start(
        self, name: str, command: list[str], log: Path, environment: dict[str, str]
    ) -> subprocess.Popen[bytes]:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as stream:
            process = subprocess.Popen(
                command,
                stdout=stream,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                cwd=REPOSITORY,
                start_new_session=True,
            )
        known = self._read()
        known[name] = {"pid": process.pid, "started": start_time(process.pid)}
        self._write(known)
        return process

    def alive(self, name: str) -> bool:
        """Whether that very process still runs, and not another with its number."""
        entry = self._read().get(name)
        return entry is not None and start_time(entry["pid"]) == entry["started"]

    def stop(self, name: str) -> None:
        """End a process by SIGTERM, and its group by SIGKILL if it does not go; then what it had
        started and left, such as the drivers of a cluster's jobs, which would wait for it for ever.
        """
        known = self._read()
        entry = known.pop(name, None)
        if entry is not None and start_time(entry["pid"]) == entry["started"]:
            started = psutil.Process(entry["pid"]).children(recursive=True)
            os.kill(entry["pid"], signal.SIGTERM)
            deadline = time.monotonic() + STOP_WITHIN_S
            while start_time(entry["pid"]) == entry["started"] and time.monotonic() < deadline:
                time.sleep(0.2)
            if start_time(entry["pid"]) == entry["started"]:
                os.killpg(entry["pid"], signal.SIGKILL)
            for process in psutil.wait_procs(started, timeout=LEAVE_WITHIN_S)[1]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self._write(known)

    def names(self) -> list[str]:
        return sorted(self._read())

    def _read(self) -> dict[str, dict[str, int]]:
        return json.loads(self._path.read_text()) if self._path.exists() else {}

    def _write(self, known: dict[str, dict[str, int]]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(known, indent=2))


class LocalCluster:
    """`ray start --head` with token authentication and a dashboard on loopback alone."""

    def __init__(self, root: Path, processes: Processes, ports: Ports, cpus: int) -> None:
        self._root, self._processes, self._ports, self._cpus = root, processes, ports, cpus
        self._token = root / "ray-token"
        self._temporary = root / "ray-temp"  # holds the name of Ray's own folder

    @property
    def address(self) -> str:
        return f"http://{LOOPBACK}:{self._ports.dashboard}"

    @property
    def environment(self) -> dict[str, str]:
        """What any process needs to speak to this cluster, stages included."""
        return os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._token),
            "RAY_ADDRESS": self.address,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TRAIN_V2_ENABLED": "1",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "NO_ALBUMENTATIONS_UPDATE": "1",
            "PYTHONUNBUFFERED": "1",
        }

    def start(self) -> None:
        """Start the head, unless it runs already.

        Raises:
            ClusterError: a port is in use, or the head did not come up.
        """
        if self._processes.alive("ray"):
            return
        for what, port in self._ports.all.items():
            require_free(port, what, "--ray-ports")
        self._root.mkdir(parents=True, exist_ok=True)
        make_token(self._token)
        # Ray puts sockets below this folder, and a socket's path has at most 107 characters.
        temporary = Path(tempfile.mkdtemp(prefix="caft-ray-", dir=os.environ.get("RAY_TMPDIR")))
        require_short_sockets(str(temporary / RAYS))
        self._temporary.write_text(str(temporary))
        environment = {k: v for k, v in self.environment.items() if k != "RAY_ADDRESS"}
        log = self._root / "ray.log"
        command = [
            str(Path(sys.executable).parent / "ray"), "start", "--head", "--block",
            f"--node-ip-address={LOOPBACK}", f"--port={self._ports.gcs}",
            f"--dashboard-host={LOOPBACK}", f"--dashboard-port={self._ports.dashboard}",
            f"--dashboard-agent-listen-port={self._ports.agent}",
            f"--ray-client-server-port={self._ports.client}", f"--num-cpus={self._cpus}",
            f"--temp-dir={temporary / RAYS}", "--disable-usage-stats",
        ]  # fmt: skip
        head = self._processes.start("ray", command, log, environment)
        deadline = time.monotonic() + START_WITHIN_S
        while not self._answers():
            if head.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise ClusterError(f"the local Ray cluster did not come up; see {log}")
            time.sleep(0.5)

    def stop(self) -> None:
        self._processes.stop("ray")
        if self._temporary.exists():
            shutil.rmtree(self._temporary.read_text(), ignore_errors=True)
            self._temporary.unlink()

    def submit(self, arguments: list[str]) -> int:
        """`python ARGUMENTS` as a job, its log on our output; returns the job's exit code."""
        command = [sys.executable, "-m", "pipelines.submit.attached", *arguments]
        return subprocess.run(command, env=self.environment, cwd=REPOSITORY, check=False).returncode

    def _answers(self) -> bool:
        """Whether the job server takes requests."""
        try:
            with socket.create_connection((LOOPBACK, self._ports.dashboard), timeout=1):
                pass
        except OSError:
            return False
        ray = str(Path(sys.executable).parent / "ray")
        listing = [ray, "job", "list", f"--address={self.address}"]
        result = subprocess.run(listing, env=self.environment, capture_output=True, check=False)
        return result.returncode == 0
