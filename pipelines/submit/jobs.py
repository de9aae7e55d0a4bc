"""Stages as Ray jobs: submitted, watched and ended through Ray's job server.
Between submit or a study and the cluster; a job outlives whoever submitted it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
from ray.dashboard.utils import get_address_for_submission_client
from ray.exceptions import AuthenticationError, RayError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from ray.util.state import list_nodes

from caft.errors import CAFTError, ClusterError
from pipelines.failures import first_words
from pipelines.submit.local_cluster import REPOSITORY, LocalCluster, Ports, Processes

LOG_LINES = 15
NO_AGENT_YET = "No available agent"  # Ray's own words
REFUSED = "already exists"  # of a job's id
FIRST_NODE_WITHIN_S = 60.0
FOLLOW_AGAIN_S = 1.0  # after a connection that broke
ASK_AGAIN_S = 2.0
CONNECT_S = 10.0
PATIENCE_S = 60.0  # of a person who asks
LONG_PATIENCE_S = 3600.0  # of what follows a job or runs a study: a head is replaced in less
ASKED_AGAIN = (408, 425, 429)
USERS_OWN = 2  # exit code of a stage that ended in a CAFTError
LONGEST_REASON = 300
# Ray's client raises RuntimeError of every status; requests and sockets OSError; JSON ValueError,
# and TypeError where an object has other fields.
# AssertionError where an address names a Python module that is no plugin of Ray's.
RAISED = (
    RuntimeError, OSError, ValueError, TypeError, AssertionError, RayError, aiohttp.ClientError,
)  # fmt: skip
LOCAL_CPUS = max(4, os.cpu_count() or 1)  # of a local cluster: workers and decoders share them
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray's, in the environment of a job

Value = TypeVar("Value")


class Outcome(Enum):
    """What has become of a job."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    REFUSED = "refused"  # a failure that another try would meet again
    LOST = "lost"  # this cluster has never heard of it, or has forgotten it


class JobGone(ClusterError):
    """The job server answers, and knows no such job."""


class _NoAnswer(Exception):
    """What the server has said does not tell how the job stands.

    Attributes:
        busy: whether it has said by an HTTP status that it may answer later.
    """

    def __init__(self, words: str, busy: bool) -> None:
        super().__init__(words)
        self.busy = busy


class Jobs:
    """The job server of the cluster that RAY_ADDRESS names.

    A server that stumbles is asked again, for `patience_s`: a dashboard that restarts, a proxy
    that answers 502 and a connection that breaks tell nothing about a job. An address at which no
    server has answered yet is given no time, unless an HTTP status asks for it.

    Raises:
        ClusterError: it does not answer.
    """

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._address = os.environ.get("RAY_ADDRESS") or "local"
        self._has_answered = False

        # It tells of each connection that ends as it should.
        logging.getLogger(JobSubmissionClient.__module__).setLevel(logging.WARNING)

        def client() -> JobSubmissionClient:
            _require_listener(self._address)
            return JobSubmissionClient(get_address_for_submission_client(None))

        self._client = self._ask(client)
        self._address = self._client.get_address()

    def resources(self) -> dict[str, float]:
        """CPUs and GPUs of all nodes that are alive; waits for the first node of a new cluster."""
        deadline = time.monotonic() + FIRST_NODE_WITHIN_S
        alive: list[tuple[str, str, str | bool | int | float]] = [("state", "=", "ALIVE")]
        while True:
            nodes = self._ask(
                lambda: list_nodes(address=self._address, filters=alive, limit=10_000)
            )
            totals = [dict(node.resources_total or {}) for node in nodes]
            found = {name: sum(total.get(name, 0.0) for total in totals) for name in ("CPU", "GPU")}
            if found["CPU"] or time.monotonic() > deadline:
                return found
            time.sleep(1)

    def submit(self, stage: str, arguments: Sequence[str], name: str, job: str) -> None:
        """Start `python -m pipelines.STAGE ARGUMENTS` as `job`, a `new_id`."""
        command = [sys.executable, "-m", f"pipelines.{stage}", *arguments]
        self.start(command, _runtime_env(), {"name": name, "stage": stage}, job)

    def start(
        self,
        command: Sequence[str],
        runtime_env: Mapping[str, Any],
        metadata: dict[str, str],
        job: str,
    ) -> None:
        """Start any command as `job`, a `new_id`. A new cluster answers before it takes jobs.

        Nothing starts twice: where the answer is lost, the server is asked for the job first.

        Raises:
            ClusterError: the job is refused.
        """
        deadline = time.monotonic() + FIRST_NODE_WITHIN_S
        again = False

        def start() -> None:
            nonlocal again
            if again and self._is_known(job):
                return
            again = True
            self._client.submit_job(
                entrypoint=shlex.join(command),
                submission_id=job,
                runtime_env=dict(runtime_env),
                metadata=metadata,
            )

        while True:
            try:
                return self._ask(start, refusals=(NO_AGENT_YET, REFUSED))
            except ClusterError as error:
                if NO_AGENT_YET not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(1)

    def all(self) -> list[JobDetails]:
        """Every submitted job that the cluster remembers, the newest first."""
        submitted = [job for job in self._ask(self._client.list_jobs) if job.submission_id]
        return sorted(submitted, key=lambda job: job.start_time or 0, reverse=True)

    def details(self, job: str) -> JobDetails:
        """Raises ClusterError when the cluster does not know the job."""
        try:
            return self._ask(lambda: self._client.get_job_info(job))
        except JobGone:
            raise JobGone(
                f"{job}: {self._address} knows no such job; `list` shows those it knows"
            ) from None

    def log(self, job: str) -> str:
        """What the job has printed so far."""
        self.details(job)
        return self._ask(lambda: self._client.get_job_logs(job))

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
            with suppress(*RAISED):
                asyncio.run(pass_on())
            details = self.details(job)
            if details.status.is_terminal():
                write(self._ask(lambda: self._client.get_job_logs(job))[written:])
                return exit_code(details)
            time.sleep(FOLLOW_AGAIN_S)

    def stop(self, job: str) -> None:
        """Ask a job to end; Ray kills it if it does not."""
        self.details(job)
        self._ask(lambda: self._client.stop_job(job))

    def outcome(self, job: str) -> Outcome:
        """LOST of a job that the server says it does not know, and of no other."""
        try:
            details = self.details(job)
        except JobGone:
            return Outcome.LOST
        if not details.status.is_terminal():
            return Outcome.RUNNING
        if details.status == JobStatus.SUCCEEDED:
            return Outcome.DONE
        return Outcome.REFUSED if details.driver_exit_code == USERS_OWN else Outcome.FAILED

    def last_words(self, job: str) -> str:
        """The end of a job's log."""
        try:
            lines = self._ask(lambda: self._client.get_job_logs(job)).strip().splitlines()
        except JobGone as error:
            lines = str(error).splitlines()[:1]
        return "\n".join(lines[-LOG_LINES:])

    def _is_known(self, job: str) -> bool:
        try:
            _answer(lambda: self._client.get_job_info(job), self._address)
        except JobGone:
            return False
        return True

    def _ask(self, call: Callable[[], Value], refusals: Sequence[str] = ()) -> Value:
        """The server's answer; while it has none to give it is asked again."""
        deadline, told = time.monotonic() + self._patience_s, False
        while True:
            try:
                answer = _answer(call, self._address, refusals)
                self._has_answered = True
                return answer
            except _NoAnswer as error:
                if not (self._has_answered or error.busy):
                    raise ClusterError(
                        f"RAY_ADDRESS {self._address}: no job server answers ({error})"
                    ) from None
                if time.monotonic() > deadline:
                    raise ClusterError(
                        f"{self._address}: the job server has given no answer for "
                        f"{self._patience_s:g} s ({error}); jobs continue without it: run the "
                        "same command again when it does"
                    ) from None
                if not told:
                    told = True
                    print(
                        f"{self._address}: the job server gives no answer ({error}); it is asked "
                        f"again for {self._patience_s:g} s",
                        file=sys.stderr,
                        flush=True,
                    )
            time.sleep(ASK_AGAIN_S)


def _require_listener(address: str) -> None:
    """Raises OSError or ValueError where nothing listens at HOST:PORT or ray://HOST:PORT: Ray
    itself tries for half a minute, and warns in several lines."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.scheme in ("", "ray") and parts.port:
        socket.create_connection((parts.hostname or "", parts.port), CONNECT_S).close()


def new_id() -> str:
    """An id for a job that its server has not seen yet, of the form of Ray's own."""
    return f"raysubmit_{uuid.uuid4().hex[:16]}"


def _answer(call: Callable[[], Value], address: str, refusals: Sequence[str] = ()) -> Value:
    """The one place that tells what Ray's client raises apart.

    Args:
        refusals: words of an error of the server which mean that it will not do it.

    Raises:
        JobGone: 404, and nothing else.
        ClusterError: the server refuses.
        _NoAnswer: anything else, such as 502, a broken connection, or a page that is no JSON.
    """
    try:
        return call()
    except CAFTError:
        raise
    except AuthenticationError as error:
        raise ClusterError(
            f"{address} refuses: {first_words(error)}; set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN_PATH to the cluster's token"
        ) from None
    except RAISED as error:
        words = str(error)
        found = re.search(r"status code:? (\d{3})\b|^(\d{3}) ", words)
        code = int(found[1] or found[2]) if found else 0
        if code == 404:
            raise JobGone(f"{address} knows no such job") from None
        client_side = 400 <= code < 500 and code not in ASKED_AGAIN
        if client_side or any(text in words for text in refusals):
            raise ClusterError(f"{address} refuses: {_inner_words(words)}") from None
        raise _NoAnswer(first_words(error), busy=code >= 500 or code in ASKED_AGAIN) from None


def _inner_words(words: str) -> str:
    """Of a traceback that the server sent as text, the exception itself."""
    lines = [line for line in words.replace("\\n", "\n").splitlines() if line.strip()]
    return lines[-1].strip()[:LONGEST_REASON] if lines else ""


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
