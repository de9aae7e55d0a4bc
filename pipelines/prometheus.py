"""Numbers of running stages for Prometheus, through Ray's own metrics; Grafana draws them.
What is here is now and so far; a run's history is in MLflow."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import ray

PREFIX = "ray_"  # what Ray puts before the names that are asked for
REFRESH_S = 5.0  # Ray's endpoint drops a gauge that nobody has set for twenty seconds


@dataclass(frozen=True)
class Gauge:
    """A number that is set, not counted: a stage that goes on after a failure counts nothing
    twice."""

    text: str
    labels: tuple[str, ...] = ("run",)


GAUGES = {
    "caft_train_images_per_second": Gauge("images trained on, all workers, in the last interval"),
    "caft_train_loss": Gauge("mean of the interval's total loss"),
    "caft_train_input_wait_fraction": Gauge("share of the time that workers waited for data"),
    "caft_train_skipped_steps": Gauge("steps left out as not finite, so far"),
    "caft_train_samples_seen": Gauge("images trained on, so far"),
    "caft_data_rows": Gauge(
        "rows of the lists worked on so far: `kept`, before duplicates, or the reject's reason",
        ("run", "outcome"),
    ),
}
OF_TRAINING = {  # a training metric as MLflow has it -> its gauge
    "train/images_per_s": "caft_train_images_per_second",
    "loss/total": "caft_train_loss",
    "train/input_wait_fraction": "caft_train_input_wait_fraction",
    "train/skipped_steps": "caft_train_skipped_steps",
    "train/samples_seen": "caft_train_samples_seen",
}


def report_training(run: str, metrics: Mapping[str, float]) -> None:
    """Show an interval's metrics of a training run; one that is no number stays as it was."""
    for name, gauge in OF_TRAINING.items():
        if name in metrics and math.isfinite(metrics[name]):
            _set(gauge, metrics[name], run=run)


def report_rows(run: str, kept: int, rejected: Mapping[str, int]) -> None:
    """Show how many rows of a dataset were kept, and rejected by reason, so far."""
    for outcome, rows in {"kept": kept, **rejected}.items():
        _set("caft_data_rows", rows, run=run, outcome=outcome)


_shown: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}  # gauge, labels -> its value


def _set(name: str, value: float, **labels: str) -> None:
    if ray.is_initialized():
        _shown[name, tuple(labels.items())] = float(value)
        _gauge(name).set(float(value), labels)
        _refresher()


@cache
def _gauge(name: str) -> Any:
    from ray.util.metrics import Gauge as RayGauge

    return RayGauge(name, GAUGES[name].text, GAUGES[name].labels)


@cache
def _refresher() -> threading.Thread:
    """The thread that shows every value until the process ends, however rarely it changes."""

    def refresh() -> None:
        while True:
            time.sleep(REFRESH_S)
            if ray.is_initialized():
                for (name, labels), value in list(_shown.items()):
                    _gauge(name).set(value, dict(labels))

    thread = threading.Thread(target=refresh, name="metrics", daemon=True)
    thread.start()
    return thread
