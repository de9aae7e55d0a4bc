"""Runs a study: starts tasks as the cluster has room, watches them, chooses learning rates, marks
what failed. Everything it knows is in the store, so that the same command goes on from there."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from caft.errors import ClusterError
from pipelines import storage
from pipelines.progress import Progress
from pipelines.submit.jobs import Jobs, Outcome, new_id
from pipelines.sweep.config import SweepConfig
from pipelines.sweep.points import Point
from pipelines.sweep.state import Store
from pipelines.sweep.tasks import Task

LOOK_EVERY_S = 1.0
ENDED = ("done", "failed", "dropped")


class Scheduler:
    """Runs tasks on a job server until each is done, failed or dropped.

    Args:
        tasks: each after those it needs.
        errors: the first target of a point whose evaluation is done; what learning rates compete
            by.
        finished: called with a point when its evaluation is done.
    """

    def __init__(
        self,
        config: SweepConfig,
        tasks: Sequence[Task],
        store: Store,
        jobs: Jobs,
        concurrency: int,
        error: Callable[[Point], float],
        finished: Callable[[Point], None],
    ) -> None:
        self._config, self._store, self._jobs = config, store, jobs
        self._tasks = {task.name: task for task in tasks}
        self._concurrency, self._error, self._finished = concurrency, error, finished
        self._chosen: dict[tuple[str, ...], frozenset[str]] = {}
        for name in self._tasks:  # what an earlier command gave up is tried again
            if self._status(name) in ("failed", "dropped"):
                store.update(name, status="waiting", why=None, jobs=())
        done = sum(self._status(name) == "done" for name in self._tasks)
        self._progress = Progress("sweep", len(tasks), "jobs", config.progress_every_s, done)

    def run(self) -> None:
        """Return when nothing is left that could run."""
        for name, task in self._tasks.items():
            if self._status(name) == "waiting" and storage.exists(task.result):
                self._end(name, "done")
        while any(self._status(name) not in ENDED for name in self._tasks):
            self._look()
            self._drop_hopeless()
            self._start_ready()
            time.sleep(LOOK_EVERY_S)

    def _status(self, name: str) -> str:
        return self._store[name].status

    def _running(self) -> list[str]:
        return [name for name in self._tasks if self._status(name) == "running"]

    def _look(self) -> None:
        """Take note of the jobs that have ended."""
        for name in self._running():
            state, task = self._store[name], self._tasks[name]
            outcome = self._jobs.outcome(state.jobs[-1])
            if outcome == Outcome.RUNNING:
                continue
            if storage.exists(task.result):
                seconds = time.time() - (state.started_at or time.time())
                self._end(name, "done", seconds=seconds)
                continue
            if outcome == Outcome.LOST:  # with a cluster that is gone, which is no fault of its own
                self._store.update(name, status="waiting", jobs=state.jobs[:-1])
                continue
            words = self._jobs.last_words(state.jobs[-1])
            last = words.splitlines()[-1] if words else "no log"
            if outcome != Outcome.REFUSED and len(state.jobs) < self._config.tries:
                print(f"sweep: {name} failed ({last}); it is tried again", flush=True)
                self._store.update(name, status="waiting")
            else:
                print(f"sweep: {name} failed for good:\n{words}", flush=True)
                self._end(name, "failed", why=last)

    def _end(self, name: str, status: str, **changes: object) -> None:
        self._store.update(name, status=status, **changes)
        task = self._tasks[name]
        if status == "done" and task.stage == "evaluate":
            self._finished(task.points[0])
        counts = Counter(self._status(other) for other in self._tasks)
        self._progress.update(1, **{key: float(counts[key]) for key in ("failed", "dropped")})

    def _drop_hopeless(self) -> None:
        """What needs a task that failed or was dropped never runs, nor do rates that lost."""
        for name, task in self._tasks.items():
            if self._status(name) != "waiting":
                continue
            why = self._lost_rate(task) or self._lost_need(task)
            if why is not None:
                self._end(name, "dropped", why=why)

    def _lost_rate(self, task: Task) -> str | None:
        setting = task.points[0].setting
        chosen = self._choice(setting.competes) if task.waits_for_choice else None
        if chosen is None or setting.name in chosen:
            return None
        return f"learning rate {setting.recipe.optimizer.lr:g} was not among the best"

    def _lost_need(self, task: Task) -> str | None:
        gone = (name for name in task.needs if self._status(name) in ("failed", "dropped"))
        return next((f"{name} {self._status(name)}" for name in gone), None)

    def _choice(self, competes: tuple[str, ...]) -> frozenset[str] | None:
        """The settings that go on, of those that compete; None until all can be compared."""
        if competes not in self._chosen:
            firsts = [
                task
                for task in self._tasks.values()
                if task.stage == "evaluate"
                and not task.waits_for_choice
                and task.points[0].setting.competes == competes
            ]
            if any(self._status(task.name) not in ENDED for task in firsts):
                return None
            errors = {
                task.points[0].setting.name: self._error(task.points[0])
                for task in firsts
                if self._status(task.name) == "done"
            }
            best = sorted(errors, key=lambda name: errors[name])[: self._config.lr_kept]
            self._chosen[competes] = frozenset(best)
            print(f"sweep: {'-'.join(competes)}: going on with {', '.join(best)}", flush=True)
        return self._chosen[competes]

    def _start_ready(self) -> None:
        room = self._concurrency - len(self._running())
        for name, task in self._tasks.items():
            if room <= 0:
                return
            if self._status(name) != "waiting":
                continue
            if any(self._status(needed) != "done" for needed in task.needs):
                continue
            if task.waits_for_choice and self._choice(task.points[0].setting.competes) is None:
                continue
            jobs = (*self._store[name].jobs, new_id())
            # First the note: a job that was started and not noted would run a second time.
            self._store.update(name, status="running", jobs=jobs, started_at=time.time())
            self._jobs.submit(task.stage, task.arguments, name, jobs[-1])
            room -= 1


def room_for(config: SweepConfig, points: Sequence[Point], resources: Mapping[str, float]) -> int:
    """How many jobs the cluster holds at a time.

    Raises:
        ClusterError: not even one.
    """
    scaling = points[0].setting.recipe.scaling
    workers = scaling.workers_range[0]
    need = {"CPU": workers * scaling.cpus_per_worker + 1}  # one to decode images
    if scaling.use_gpu:
        need["GPU"] = float(workers)
    fits = min(int(resources.get(name, 0.0) / amount) for name, amount in need.items())
    if fits == 0:
        wanted = " and ".join(f"{amount:g} {name}s" for name, amount in need.items())
        raise ClusterError(
            f"scaling: a point needs {wanted}, the cluster has "
            f"{', '.join(f'{resources.get(name, 0.0):g} {name}s' for name in need)}; lower "
            "scaling in train_set, or add nodes"
        )
    return min(fits, config.concurrency or fits)
