"""One owner of an output: a stage claims it before it writes, and shows that it lives.
Around every stage's run; a second start of the same waits, takes over, or ends with one line."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import fsspec.core

from caft.documents import parse_json
from caft.errors import OwnedError, StorageError
from pipelines import storage
from pipelines.processes import start_time

CLAIM, LOCK = "owner.json", "owner.lock"
END = signal.SIGUSR2  # to this process itself, once another has taken its output over
BEAT_EVERY_S = 5.0
DEAD_AFTER_S = 30.0  # of an owner on another machine that has not renewed its claim
LOOK_EVERY_S = 1.0
JOBS = ("RAY_JOB_SUBMISSION_ID", "SLURM_JOB_ID")
S3_ERRORS = {"NoSuchBucket": errno.ENOENT, "AccessDenied": errno.EACCES}
# No bucket, too: the stage says so, as of every place that it cannot write.
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR)


@dataclass(frozen=True)
class Owner:
    """Who writes an output.

    Attributes:
        place: within which `pid` names one process: the host as it was booted, and its container.
        started: the kernel's start time of the process, since numbers are used again.
        beat: grows for as long as the owner lives.
    """

    id: str
    stage: str
    host: str
    place: str
    pid: int
    started: int
    job: str
    since: str
    beat: int = 0

    def __str__(self) -> str:
        job = f", job {self.job}" if self.job else ""
        return f"{self.stage} on {self.host} (process {self.pid}{job}) since {self.since}"


@contextmanager
def owned(output: str, stage: str, wait: bool = False) -> Iterator[None]:
    """Own the output for as long as the block runs.

    An owner that is known to be dead is replaced at once, and one on another machine once it has
    not renewed its claim for DEAD_AFTER_S. An output that this user cannot write has no owner.

    Args:
        wait: for a live owner to end, instead of ending.

    Raises:
        OwnedError: a live owner has it, or has taken it over from this process.
        StorageError: it cannot be reached.
    """
    claim = _Claim(output, stage)
    claim.acquire(wait)
    beats = threading.Thread(target=claim.renew_until_released, daemon=True)
    with _interruptible():
        beats.start()
        try:
            yield
        except KeyboardInterrupt:
            if claim.lost_to is not None:
                raise OwnedError(f"{output}: was taken over by {claim.lost_to}") from None
            raise
        finally:
            claim.release()
            beats.join()


def has_live_owner(output: str) -> bool:
    """Whether a process writes the output now; takes up to DEAD_AFTER_S to tell of one on another
    machine. Raises StorageError where it cannot be read."""
    claim = _Claim(output, "")
    seen = claim.read()
    return seen is not None and claim.is_alive(seen)


@contextmanager
def _interruptible() -> Iterator[None]:
    """END raises KeyboardInterrupt in the main thread. SIGINT would not where a shell started this
    process in the background, which makes it ignore that."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers; it is the caller's to end
        return
    before = signal.signal(END, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(END, before)


class _Claim:
    """The claim of this process on one output."""

    def __init__(self, output: str, stage: str) -> None:
        self._output = output
        self._path, self._lock = (storage.join(output, name) for name in (CLAIM, LOCK))
        self._mine = _this_process(stage)
        self._released = threading.Event()
        self._is_held = False
        self.lost_to: Owner | None = None

    def acquire(self, wait: bool) -> None:
        """Raises OwnedError where a live owner has it, StorageError where nobody can be asked."""
        warned = False
        while not self._create():
            seen = self.read()
            if seen is None:
                continue  # it was released just now
            if not self.is_alive(seen):
                self._replace(seen)
            elif not wait:
                raise OwnedError(
                    f"{self._output}: is being written by {seen}; end that one, wait for it by "
                    "--wait, or name another output"
                )
            else:
                if not warned:
                    print(f"{self._output}: waits for {seen}", file=sys.stderr, flush=True)
                    warned = True
                time.sleep(LOOK_EVERY_S)

    def renew_until_released(self) -> None:
        """Show that this process lives; end it where another one has taken its output over."""
        beat = 0
        while self._is_held and not self._released.wait(BEAT_EVERY_S):
            beat += 1
            with suppress(StorageError):  # a full disk, a store that is away: tried again
                seen = self.read()
                if isinstance(seen, Owner) and seen.id != self._mine.id:
                    self.lost_to = seen
                    os.kill(os.getpid(), END)
                    return
                storage.write_json(self._path, asdict(self._mine) | {"beat": beat})

    def release(self) -> None:
        self._released.set()
        if self._is_held and self.lost_to is None:
            with suppress(StorageError):
                seen = self.read()
                if isinstance(seen, Owner) and seen.id == self._mine.id:
                    storage.delete_file(self._path)

    def _create(self) -> bool:
        """Whether this process is the owner now, or nobody is, because nothing can be written."""
        try:
            self._is_held = _create(self._path, asdict(self._mine))
        except OSError as error:
            if error.errno not in NOT_WRITABLE:
                raise storage.write_error(self._path, error) from None
            return True
        return self._is_held

    def read(self) -> Owner | str | None:
        """The owner; what the claim holds where that is no owner; None where there is no claim."""
        data = _content(self._path)
        if data is None:
            return None
        try:
            return Owner(**parse_json(data, self._path, StorageError))
        except (StorageError, TypeError):
            return f"an owner that cannot be read ({data[:100]!r})"

    def is_alive(self, seen: Owner | str) -> bool:
        """Whether its owner lives; takes up to DEAD_AFTER_S to tell of one on another machine."""
        if isinstance(seen, Owner) and seen.place == self._mine.place:
            return start_time(seen.pid) == seen.started
        print(
            f"{self._output}: last written by {seen}; looks for {DEAD_AFTER_S:g} s whether it "
            "still is",
            file=sys.stderr,
            flush=True,
        )
        deadline = time.monotonic() + DEAD_AFTER_S
        while time.monotonic() < deadline:
            time.sleep(LOOK_EVERY_S)
            if self.read() != seen:
                return True  # renewed; or released, which the next look finds
        return False

    def _replace(self, dead: Owner | str) -> None:
        """Delete the claim of a dead owner, unless another process has done so meanwhile."""
        while not _create(self._lock, asdict(self._mine)):
            before = _content(self._lock)
            time.sleep(LOOK_EVERY_S)
            if _content(self._lock) == before:  # its owner died between the lines below
                storage.delete_file(self._lock)
        try:
            if self.read() == dead:
                storage.delete_file(self._path)
        finally:
            storage.delete_file(self._lock)


def _create(path: str, value: dict[str, Any]) -> bool:
    """Write a new file; False where there is one. Of several processes one is told True.

    Raises:
        OSError: it cannot be written.
    """
    data = json.dumps(value).encode()
    if storage.is_local(path):
        file = Path(storage.filesystem(path)[1])
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(file, "xb") as stream:
                stream.write(data)
        except FileExistsError:
            return False
        return True
    if storage.exists(path):  # some stores do not heed the condition below
        return False
    if path.startswith("s3://"):
        return _create_on_s3(path, data)
    opened, inner = fsspec.core.url_to_fs(path)
    try:
        opened.pipe_file(inner, data, mode="create")
    except FileExistsError:
        return False
    return True


def _create_on_s3(path: str, data: bytes) -> bool:
    """By a conditional put, which Arrow has no call for."""
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, key = path.removeprefix("s3://").partition("/")
    try:
        client = _s3_client(os.environ.get("AWS_ENDPOINT_URL"))
        client.put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
            return False
        raise OSError(S3_ERRORS.get(code, errno.EIO), str(error)) from None
    except BotoCoreError as error:
        raise OSError(errno.EIO, str(error)) from None
    return True


@cache
def _s3_client(_endpoint: str | None) -> Any:
    """One client per endpoint, which botocore takes from the environment as it does credentials."""
    from botocore.config import Config
    from botocore.session import Session

    session = Session()
    region = session.get_config_variable("region") or "us-east-1"
    return session.create_client("s3", region, config=Config(**storage.botocore_limits()))


def _content(path: str) -> bytes | None:
    """Of a file; None where there is none."""
    while storage.exists(path):
        try:
            return storage.read_bytes(path)
        except StorageError as error:
            if "no such file" not in str(error):  # deleted between the two calls
                raise
    return None


def _this_process(stage: str) -> Owner:
    host, pid = socket.gethostname(), os.getpid()
    boot = Path("/proc/sys/kernel/random/boot_id")
    place = [host, boot.read_text().strip() if boot.exists() else "", _link("/proc/self/ns/pid")]
    return Owner(
        id=uuid.uuid4().hex,
        stage=stage,
        host=host,
        place=" ".join(place),
        pid=pid,
        started=start_time(pid),
        job=next((job for name in JOBS if (job := os.environ.get(name))), ""),
        since=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
    )


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
