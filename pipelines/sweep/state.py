"""What is known of each task of a study, in its output: survives the driver and the cluster.
Written by run.py at every change, and read by it when the same command runs again."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pipelines import storage

Status = Literal["waiting", "running", "done", "failed", "dropped"]
STATE = "state"


@dataclass(frozen=True)
class TaskState:
    """Where a task stands.

    Attributes:
        jobs: ids of all attempts, the last one last.
        why: of a failure or of not being run, for people.
        seconds: that the attempt that finished took.
    """

    status: Status = "waiting"
    jobs: tuple[str, ...] = ()
    started_at: float | None = None  # seconds since 1970, of the last attempt
    seconds: float | None = None
    why: str | None = None


class Store:
    """The states of all tasks, a small file each."""

    def __init__(self, output: str) -> None:
        self._folder = storage.join(output, STATE)
        self._known: dict[str, TaskState] = {}
        for name in storage.list_files(self._folder, ".json"):
            raw = storage.read_json(storage.join(self._folder, name))
            raw["jobs"] = tuple(raw["jobs"])
            self._known[name.removesuffix(".json")] = TaskState(**raw)

    def __getitem__(self, task: str) -> TaskState:
        return self._known.get(task, TaskState())

    def update(self, task: str, **changes: Any) -> None:
        self._known[task] = replace(self[task], **changes)
        storage.write_json(storage.join(self._folder, f"{task}.json"), asdict(self._known[task]))
