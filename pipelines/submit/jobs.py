"""Stages as Ray jobs: submitted, watched and ended through Ray's job server.
Between submit or a study and the cluster; a job outlives whoever submitted it."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ray.dashboard.utils import get_address_for_submission_client
from ray.exceptions import RayError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from ray.util.state import list_nodes

from caft.errors import ClusterError, ConfigError
from pipelines.submit.local_cluster import REPOSITORY, LocalCluster, Ports, Processes

LOG_LINES = 15
NO_AGENT_YET = "No available agent"  # Ray's own words
FIRST_NODE_WITHIN_S = 60.0
FOLLOW_AGAIN_S = 1.0  # after a connection that broke
LOCAL_CPUS = max(4, os.cpu_count() or 1)  # of a local cluster: workers and decoders share them
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray's, in the environment of a job
FOLDERS = ("runs", "build", "dist", "__pycache__", "node_modules", "*.egg-info")
FILES = ("*.parquet", "*.tar", "*.zip", "*.db", "*.pyc", "*.pem", "*.key")
MAX_FILE_BYTES = 20 * 2**20
MAX_BYTES = 100 * 2**20  # every node unpacks it before a job starts
MADE_AT = (1980, 1, 1, 0, 0, 0)  # the oldest time that a zip file can hold


class Outcome(Enum):
    """What has become of a job."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    LOST = "lost"  # this cluster has never heard of it, or has forgotten it


class Jobs:
    """The job server of the cluster that RAY_ADDRESS names.

    Raises:
        ClusterError: it does not answer.
    """

    def __init__(self) -> None:
        try:
            self._address = get_address_for_submission_client(None)
            self._client = JobSubmissionClient(self._address)
        except (ConnectionError, RuntimeError, ValueError, RayError) as error:
            raise ClusterError(
                f"RAY_ADDRESS {os.environ.get('RAY_ADDRESS')}: no job server answers "
                f"({str(error).splitlines()[0]})"
            ) from None

    def resources(self) -> dict[str, float]:
        """CPUs and GPUs of all nodes that are alive; waits for the first node of a new cluster."""
        deadline = time.monotonic() + FIRST_NODE_WITHIN_S
        while True:
            nodes = list_nodes(
                address=self._address, filters=[("state", "=", "ALIVE")], limit=10_000
            )
            totals = [dict(node.resources_total or {}) for node in nodes]
            found = {name: sum(total.get(name, 0.0) for total in totals) for name in ("CPU", "GPU")}
            if found["CPU"] or time.monotonic() > deadline:
                return found
            time.sleep(1)

    def submit(self, stage: str, arguments: Sequence[str], name: str) -> str:
        """Start `python -m pipelines.STAGE ARGUMENTS`; returns the job's id."""
        command = [sys.executable, "-m", f"pipelines.{stage}", *arguments]
        return self.start(command, _runtime_env(), {"name": name, "stage": stage})

    def start(
        self, command: Sequence[str], runtime_env: Mapping[str, Any], metadata: dict[str, str]
    ) -> str:
        """Start any command; returns the job's id. A new cluster answers before it takes jobs.

        Raises:
            ClusterError: the job is refused.
        """
        deadline = time.monotonic() + FIRST_NODE_WITHIN_S
        entrypoint = shlex.join(command)
        while True:
            try:
                return self._client.submit_job(
                    entrypoint=entrypoint, runtime_env=dict(runtime_env), metadata=metadata
                )
            except RuntimeError as error:
                if NO_AGENT_YET not in str(error) or time.monotonic() > deadline:
                    raise ClusterError(f"{self._address} refuses the job: {error}") from None
            time.sleep(1)

    def all(self) -> list[JobDetails]:
        """Every submitted job that the cluster remembers, the newest first."""
        submitted = [job for job in self._client.list_jobs() if job.submission_id]
        return sorted(submitted, key=lambda job: job.start_time or 0, reverse=True)

    def details(self, job: str) -> JobDetails:
        """Raises ClusterError when the cluster does not know the job."""
        try:
            return self._client.get_job_info(job)
        except RuntimeError:
            raise ClusterError(
                f"{job}: {self._address} knows no such job; `list` shows those it knows"
            ) from None

    def log(self, job: str) -> str:
        """What the job has printed so far."""
        self.details(job)
        return self._client.get_job_logs(job)

    def follow(self, job: str, write: Callable[[str], object]) -> int:
        """Pass the job's log on as it grows, until it ends; returns its exit code.

        A connection that breaks is made again, and nothing is passed on twice.
        """
        written = 0

        async def pass_on() -> None:
            nonlocal written
            seen = 0  # the server starts from the beginning each time
            async for text in self._client.tail_job_logs(job):
                seen += len(text)
                if seen > written:
                    write(text[written - seen :])
                    written = seen

        while True:
            with suppress(RuntimeError, OSError):
                asyncio.run(pass_on())
            details = self.details(job)
            if details.status.is_terminal():
                write(self._client.get_job_logs(job)[written:])
                return exit_code(details)
            time.sleep(FOLLOW_AGAIN_S)

    def stop(self, job: str) -> None:
        """Ask a job to end; Ray kills it if it does not."""
        self.details(job)
        self._client.stop_job(job)

    def outcome(self, job: str) -> Outcome:
        try:
            status = self._client.get_job_status(job)
        except RuntimeError:
            return Outcome.LOST
        if not status.is_terminal():
            return Outcome.RUNNING
        return Outcome.DONE if status == JobStatus.SUCCEEDED else Outcome.FAILED

    def last_words(self, job: str) -> str:
        """The end of a job's log."""
        try:
            lines = self._client.get_job_logs(job).strip().splitlines()
        except RuntimeError as error:
            lines = str(error).splitlines()[:1]
        return "\n".join(lines[-LOG_LINES:])


def exit_code(details: JobDetails) -> int:
    """Of a job that has ended, as a shell gives it."""
    if details.status == JobStatus.SUCCEEDED:
        return 0
    code = details.driver_exit_code
    return 128 - code if code and code < 0 else code or 1


def _runtime_env() -> dict[str, Any]:
    """Where jobs find this code: in the working directory of the job that this is, or here."""
    own = json.loads(os.environ.get(JOB_CONFIG, "{}")).get("runtime_env", {})
    if "working_dir" in own:
        return {name: own[name] for name in ("working_dir", "env_vars") if name in own}
    return {"env_vars": {"PYTHONPATH": str(REPOSITORY)}}


def on_local_cluster(command: Sequence[str], root: Path) -> int:
    """Run a command of ours with a cluster for it, which is started below `root` and ends with it;
    returns its exit code. In a process of its own, because Ray reads how to sign in only once."""
    cluster = LocalCluster(root, Processes(root / "pids.json"), Ports.free(), LOCAL_CPUS)
    cluster.stop()  # that of a command that was killed
    cluster.start()
    try:
        return subprocess.run([sys.executable, *command], env=cluster.environment).returncode
    finally:
        cluster.stop()


@dataclass(frozen=True)
class Package:
    """A zip file.

    Attributes:
        files: how many it holds.
        size_bytes: of the zip file.
        left_out: files above MAX_FILE_BYTES, relative to the folder.
    """

    path: Path
    files: int
    size_bytes: int
    left_out: tuple[str, ...]


def pack(folder: Path, into: Path) -> Package:
    """Write `package.zip` into `into`, with what a job needs of `folder`.

    Left out: hidden files and folders (.git, .venv, .env), outputs, caches, virtual environments,
    datasets, keys, links, and files above MAX_FILE_BYTES.

    Raises:
        ConfigError: what is left is above MAX_BYTES.
    """
    kept: list[Path] = []
    left_out: list[str] = []
    for root, folders, names in os.walk(folder):
        here = Path(root)
        folders[:] = sorted(name for name in folders if not _is_data(here / name, FOLDERS))
        for name in sorted(names):
            path = here / name
            if _is_data(path, FILES):
                continue
            if path.stat().st_size > MAX_FILE_BYTES:
                left_out.append(str(path.relative_to(folder)))
            else:
                kept.append(path)
    _require_small(folder, kept)
    package = into / "package.zip"
    with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in kept:
            entry = zipfile.ZipInfo(str(path.relative_to(folder)), MADE_AT)
            entry.external_attr = (path.stat().st_mode & 0o777) << 16
            archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return Package(package, len(kept), package.stat().st_size, tuple(left_out))


def _is_data(path: Path, patterns: tuple[str, ...]) -> bool:
    return (
        path.name.startswith(".")
        or any(fnmatch(path.name, pattern) for pattern in patterns)
        or path.is_symlink()
        or (path / "pyvenv.cfg").exists()
    )


def _require_small(folder: Path, kept: list[Path]) -> None:
    total = 0
    by_folder: dict[str, int] = {}
    for path in kept:
        size, top = path.stat().st_size, path.relative_to(folder).parts[0]
        total += size
        by_folder[top] = by_folder.get(top, 0) + size
    if total > MAX_BYTES:
        largest = max(by_folder, key=lambda name: by_folder[name])
        raise ConfigError(
            f"{folder}: {total / 2**20:,.0f} MiB would be copied to every node, above "
            f"{MAX_BYTES // 2**20}; move {largest} ({by_folder[largest] / 2**20:,.0f} MiB) "
            "elsewhere, or submit from the folder of the code"
        )
