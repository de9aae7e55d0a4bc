"""Held-out evaluations of a run, beside its training: one at a time, each on a step's weights.
Lives on the first worker; the scoring itself is a Ray task (held_out.py)."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
import torch

from caft.config import ModelConfig
from caft.errors import ClusterError, StorageError
from pipelines import storage
from pipelines.failures import shortened, understood
from pipelines.tracking import Tracker
from pipelines.train.config import EvaluationConfig
from pipelines.train.held_out import PREFIX, HeldOutSet, start_scoring

RECORD = "held_out.json"  # in the run's output: metrics by step
HEAT_MAPS = "heat maps"  # name of pictures in MLflow
LOOK_EVERY_S = 1.0
SAY_AFTER_S = 20.0  # without a CPU; Ray starts a process in less


class Evaluations:
    """Runs evaluations on a thread beside training. While one runs, the newest one asked for
    waits, and takes the place of one that waited before.

    Results go to MLflow at the step of the weights, and to a record in the run's output, so that
    a run taken up again neither scores nor logs a step twice. An evaluation that fails is said
    and counted, as `eval/failed`; training never hears of it.
    """

    def __init__(
        self,
        evaluation: EvaluationConfig,
        held_out: HeldOutSet,
        model: ModelConfig,
        output: str,
        tracker: Tracker,
        busy_cpus: float = 0.0,
    ) -> None:
        """
        Args:
            busy_cpus: of the cluster's, those that training cannot do without.
        """
        self._evaluation, self._held_out, self._model = evaluation, held_out, model
        self._tracker, self._busy_cpus = tracker, busy_cpus
        self._path = storage.join(output, RECORD)
        self._finished = _read(self._path)
        self._failed = 0
        self._said: set[str] = set()
        self._waiting: tuple[int, Any] | None = None
        self._closing = self._given_up = False
        self._ends = math.inf  # when training has ended
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def finished(self) -> Mapping[int, Mapping[str, float]]:
        """Metrics by the step of the weights, of this and earlier attempts at the run."""
        return dict(self._finished)

    def knows(self, step: int) -> bool:
        """Whether the weights after `step` were scored before."""
        return step in self._finished

    def scores(self, step: int) -> dict[str, float]:
        """Metrics of the weights after `step`, named as in MLflow; empty until they are known."""
        return {PREFIX + key: value for key, value in self._finished.get(step, {}).items()}

    def submit(self, step: int, weights: Mapping[str, torch.Tensor]) -> None:
        """Score these weights as soon as the evaluation before is done; returns at once."""
        stored = ray.put({name: tensor.numpy() for name, tensor in weights.items()})
        with self._changed:
            if self._waiting is not None:
                self._say(
                    "replaced",
                    f"that of step {self._waiting[0]:,} is left out for that of step {step:,}: "
                    "they take longer than evaluation.every_steps steps",
                )
            self._waiting = step, stored
            self._changed.notify()

    def close(self, wait: bool) -> None:
        """Take no more. With `wait`, return when what was asked for is done, or has found no room
        for `evaluation.wait_s`; without, what is not done yet never will be."""
        with self._changed:
            self._closing, self._given_up = True, not wait
            self._ends = time.monotonic()
            self._changed.notify()
        if wait:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._closing)
                if self._waiting is None or self._given_up:
                    return
                asked, self._waiting = self._waiting, None
            step = asked[0]
            try:
                metrics, pictures = self._score(asked[1])
            except Exception as error:  # whatever ends a task, training goes on
                if not self._given_up:
                    self._fail(step, error)
            else:
                if not self._given_up:
                    self._record(step, metrics, pictures)
            del asked  # or the store would keep the weights until the next ones come

    def _score(self, weights: Any) -> tuple[dict[str, float], list[bytes]]:
        cpus = ray.cluster_resources().get("CPU", 0.0)
        if cpus < self._busy_cpus + self._evaluation.num_cpus:
            self._say(
                "shares",
                f"the cluster's {cpus:g} CPUs are workers' or needed to decode images, so training "
                "may wait for data while an evaluation runs; add a node, or lower "
                "evaluation.num_cpus",
            )
        results = start_scoring(weights, self._model, self._held_out, self._evaluation)
        asked = time.monotonic()
        while not ray.wait([results], timeout=LOOK_EVERY_S)[0]:
            now = time.monotonic()
            if now - asked >= SAY_AFTER_S:
                self._say("waits", f"waiting for {self._needs()}; training goes on")
            if now >= self._ends + self._evaluation.wait_s:
                ray.cancel(results)
                raise ClusterError(
                    f"{self._needs()} did not come within evaluation.wait_s "
                    f"{self._evaluation.wait_s:g}"
                )
        ray.get(next(results))  # STARTED
        metrics = ray.get(next(results))
        try:
            return metrics, ray.get(next(results))
        except Exception as error:  # scores do not hang on pictures
            self._say("pictures", f"no heat maps ({shortened(understood(error))})")
            return metrics, []

    def _needs(self) -> str:
        gpus = f" and {self._evaluation.num_gpus:g} GPUs" if self._evaluation.num_gpus else ""
        return f"{self._evaluation.num_cpus:g} free CPUs{gpus} on one node"

    def _record(self, step: int, metrics: dict[str, float], pictures: Sequence[bytes]) -> None:
        self._finished = self._finished | {step: metrics}
        self._tracker.log_metrics(self.scores(step), step)
        for number, picture in enumerate(pictures, 1):
            self._tracker.log_image(picture, f"{HEAT_MAPS} {number}", step)
        try:
            storage.write_json(self._path, self._finished)
        except StorageError as error:
            self._say("unwritten", str(error))

    def _fail(self, step: int, error: Exception) -> None:
        self._failed += 1
        self._tracker.log_metrics({f"{PREFIX}failed": float(self._failed)}, step)
        self._say(
            f"{step}",
            f"that of step {step:,} failed ({shortened(understood(error))}); training goes on",
        )

    def _say(self, subject: str, text: str) -> None:
        """A line for the log, once for each subject."""
        if subject not in self._said:
            self._said.add(subject)
            print(f"train: held-out evaluation: {text}", flush=True)


def _read(path: str) -> dict[int, dict[str, float]]:
    if not storage.exists(path):
        return {}
    return {int(step): metrics for step, metrics in storage.read_json(path).items()}
