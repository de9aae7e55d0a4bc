"""What the first worker tells the world of a run: metrics and one line of progress now and then.
Fed by the loop with what telemetry.py measures and what held-out evaluations find."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version

from pipelines.progress import Progress
from pipelines.prometheus import report_training
from pipelines.tracking import EventLog, Tracker
from pipelines.train.config import TrainConfig
from pipelines.train.telemetry import TERA, Peak

LIBRARIES = ("torch", "ray", "deepspeed")


class RunLog:
    """The run's metrics and progress. A run that is taken up again at an earlier step passes the
    steps in between a second time; they are logged once."""

    def __init__(self, config: TrainConfig, name: str, total_steps: int, done: int) -> None:
        events = EventLog(config.output, "train")
        self._name, self._logged_before = name, events.last_step()
        self.tracker = Tracker(events, system_metrics=True)
        self._progress = Progress("train", total_steps, "steps", config.progress_every_s, done=done)

    def describe(self, workers: int, peak: Peak) -> None:
        """Tags of what the run runs on."""
        tags = {f"{library}_version": version(library) for library in LIBRARIES}
        known = f" ({peak.flop_per_s / TERA:,.3g} TFLOP/s a worker)" if peak.flop_per_s else ""
        tags |= {"world_size": str(workers), "mfu_peak": f"{peak.known_from}{known}"}
        self.tracker.set_tags(tags)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log an interval's metrics, unless an earlier attempt has logged that step."""
        report_training(self._name, metrics)
        if step > self._logged_before:
            self.tracker.log_metrics(metrics, step)

    def step_done(self, metrics: Mapping[str, float]) -> None:
        """Count a step; `metrics` are those of the latest interval, empty before the first."""
        self._progress.update(1, **(_shown(metrics) if metrics else {}))

    def close(self) -> None:
        self.tracker.close()


def _shown(metrics: Mapping[str, float]) -> dict[str, str | float]:
    memory = metrics.get("train/device_memory_gib", metrics["train/host_memory_gib"])
    return {
        "loss": metrics["loss/total"],
        "images/s": metrics["train/images_per_s"],
        "waiting": f"{metrics['train/input_wait_fraction']:.0%}",
        "memory": f"{memory:.1f} GiB",
    }
