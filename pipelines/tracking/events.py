"""The event log of a run, in the output of its stage: all that is logged, whether or not a server
has it. Each process that logs to a run writes a file of its own; upload.py reads them all."""

from __future__ import annotations

import json
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caft.documents import parse_json
from caft.durable import sync
from caft.errors import StorageError
from pipelines import storage

FOLDER, RUN, FILES = "tracking", "run.json", "files"
PIECE_BYTES = 2**20
PASSED = "train/samples_seen"  # a metric of every step that a training logs

Event = dict[str, Any]


class EventLog:
    """The log of one run below `output`: files of an event a line, whose names sort by time. On a
    disk they grow; in a bucket, which cannot append, they are numbered pieces, the last of which is
    written again until it has PIECE_BYTES."""

    def __init__(self, output: str, name: str) -> None:
        self.output, self.name = output.rstrip("/"), name
        self.folder = storage.join(self.output, FOLDER, name)
        self.is_local = storage.is_local(self.output)

    def begin(self, stage: str, name: str, earlier: str | None) -> None:
        """Make the log where there is none; `earlier` is how a version without logs knew the run.
        Raises StorageError where the output cannot be written."""
        if not storage.exists(self.path(RUN)):
            name = stage if name == stage else f"{stage} {name}"
            about = {"key": earlier or uuid.uuid4().hex, "stage": stage, "name": name}
            storage.write_json(self.path(RUN), about)

    def about(self) -> dict[str, str]:
        """The run's `key`, by which its client finds it on any server, `stage`, and `name`."""
        return dict(storage.read_json(self.path(RUN)))

    def path(self, *names: str) -> str:
        return storage.join(self.folder, *names)

    def read(self, ends: Mapping[str, int]) -> list[tuple[str, int, Event]]:
        """Complete events beyond `ends`, the bytes of each file that are known already: the file,
        where in it the event ends, and the event; empty of a line that is none."""
        found = []
        for name, size in sorted(storage.file_sizes(self.folder).items()):
            end = ends.get(name, 0)
            if not name.endswith(".jsonl") or size <= end:
                continue
            *lines, _ = storage.read_from(self.path(name), end).split(b"\n")
            for line in lines:
                end += len(line) + 1
                found.append((name, end, _parsed(line, name)))
        return found

    def last_step(self) -> int:
        """The last step whose metrics were logged."""
        events = [event for _, _, event in self.read({})]
        passed = [e["step"] for e in events if PASSED in e.get("metrics", ())]
        return max([0, *passed, *(e.get("known_step", 0) for e in events)])


def _parsed(line: bytes, name: str) -> Event:
    try:
        event = parse_json(line, name, StorageError)
    except StorageError:  # half a line of a disk that was full
        return {}
    return event if isinstance(event, dict) else {}


class Writer:
    """This process's part of a log."""

    def __init__(self, log: EventLog) -> None:
        self._log, self._name = log, f"{time.time_ns()}-{uuid.uuid4().hex[:8]}"
        self._lock = threading.Lock()  # guards _waiting, never for long
        self._writing = threading.Lock()  # guards what follows it, and the file
        self._waiting = b""  # what is not in the log yet
        self._number, self._piece = 0, b""  # of a bucket: the last piece
        self._failed = False

    def append(self, event: Event) -> None:
        """At once on a disk, in a bucket with the next `write`."""
        with self._lock:
            self._waiting += json.dumps(event).encode() + b"\n"
        if self._log.is_local:
            self.write()

    def write(self, durably: bool = False) -> None:
        """Bring what waits into the log, `durably`: so that it outlasts a loss of power. Where that
        fails the stage continues, and the next call tries again."""
        with self._writing:
            with self._lock:
                data = self._waiting
            try:
                if self._log.is_local:
                    self._append(data, durably)
                elif data:
                    piece = self._piece + data
                    storage.write_bytes(
                        self._log.path(f"{self._name}.{self._number:05d}.jsonl"), piece
                    )
                    is_full = len(piece) >= PIECE_BYTES
                    self._number, self._piece = self._number + is_full, b"" if is_full else piece
            except (OSError, StorageError) as error:
                if not self._failed:
                    print(f"tracking: {error}; metrics wait in memory", file=sys.stderr, flush=True)
                self._failed = True
                return
            self._failed = False
            with self._lock:
                self._waiting = self._waiting[len(data) :]

    def _append(self, data: bytes, durably: bool) -> None:
        file = Path(storage.filesystem(self._log.path(f"{self._name}.jsonl"))[1])
        if data:
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(file, "ab") as stream:  # after a failure there may be half a line
                stream.write(b"\n" + data if self._failed else data)
        if durably and file.exists():
            sync(file)
