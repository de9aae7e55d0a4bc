"""Stages as Ray jobs: submitted, watched and ended through Ray's job server.
Between the scheduler and the cluster; a job outlives whoever submitted it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from ray.dashboard.utils import get_address_for_submission_client
from ray.exceptions import RayError
from ray.job_submission import JobStatus, JobSubmissionClient
from ray.util.state import list_nodes

from caft.errors import ClusterError
from pipelines.local_cluster import REPOSITORY, LocalCluster, Ports, Processes

LOG_LINES = 15
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray's, in the environment of a job


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
        """CPUs and GPUs of all nodes that are alive."""
        nodes = list_nodes(address=self._address, filters=[("state", "=", "ALIVE")], limit=10_000)
        totals = [dict(node.resources_total or {}) for node in nodes]
        return {name: sum(total.get(name, 0.0) for total in totals) for name in ("CPU", "GPU")}

    def submit(self, stage: str, arguments: Sequence[str], name: str) -> str:
        """Start `python -m pipelines.STAGE ARGUMENTS`; returns the job's id."""
        return self._client.submit_job(
            entrypoint=shlex.join([sys.executable, "-m", f"pipelines.{stage}", *arguments]),
            runtime_env=_runtime_env(),
            metadata={"name": name, "stage": stage},
        )

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


def _runtime_env() -> dict[str, Any]:
    """Where jobs find this code: in the working directory of the job that this is, or here."""
    own = json.loads(os.environ.get(JOB_CONFIG, "{}")).get("runtime_env", {})
    if "working_dir" in own:
        return {name: own[name] for name in ("working_dir", "env_vars") if name in own}
    return {"env_vars": {"PYTHONPATH": str(REPOSITORY)}}


def on_local_cluster(command: Sequence[str], root: Path, cpus: int) -> int:
    """Run a command of ours with a cluster for it, which is started below `root` and ends with it;
    returns its exit code. In a process of its own, because Ray reads how to sign in only once."""
    cluster = LocalCluster(root, Processes(root / "pids.json"), Ports.free(), cpus)
    cluster.stop()  # that of a command that was killed
    cluster.start()
    try:
        return subprocess.run([sys.executable, *command], env=cluster.environment).returncode
    finally:
        cluster.stop()
