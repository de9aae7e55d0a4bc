"""A window of training steps under torch.profiler: by configuration, or for a run under way.
Called by the worker's loop; a trace and a table go to the output and to MLflow."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from pipelines import storage
from pipelines.tracking import Tracker
from pipelines.train.config import ProfileConfig

FOLDER = "profiles"
OPERATORS_SHOWN = 20
WARM_UP = 1  # steps under the profiler before the trace: starting it takes its time


class Profiler:
    """Traces windows of steps on one worker, if the configuration names it.

    A window writes `profiles/step-NNNNNNNN-worker-R.json.gz`, which chrome://tracing and Perfetto
    open, and beside it a table of the operators that took longest. MLflow gets both.

    Args:
        open_tracker: opens the run's tracker, which each traced worker does when it has a trace.
    """

    def __init__(
        self,
        config: ProfileConfig,
        output: str,
        rank: int,
        device: torch.device,
        open_tracker: Callable[[], Tracker],
    ) -> None:
        self._config = config
        self._folder = storage.join(output, FOLDER)
        self._rank, self._device = rank, device
        self._open_tracker = open_tracker
        self._running: profile | None = None
        self._asked = False

    def before_step(self, step: int, asked: bool = False) -> None:
        """Start, move on or end a window; called before every step, counted from 1.

        Args:
            asked: somebody wants a window as soon as none is open.
        """
        self._asked |= asked
        if self._running is not None:
            running = self._running
            running.step()  # the last step of a window writes it
            if self._running is None:
                running.stop()
        elif self._rank in self._config.workers:
            start = self._config.start_step
            if self._asked or (start is not None and step == max(1, start - WARM_UP)):
                self._asked = False
                self._start(step + WARM_UP)

    def close(self) -> None:
        """End a window that is open, with the steps it has."""
        if self._running is not None:
            self._running.stop()
            self._running = None

    def _start(self, first: int) -> None:
        activities = [ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        name = f"step-{first:08d}-worker-{self._rank}"
        self._running = profile(
            activities=activities,
            schedule=schedule(wait=0, warmup=WARM_UP, active=self._config.steps, repeat=1),
            on_trace_ready=lambda finished: self._write(finished, name),
        )
        self._running.start()

    def _write(self, finished: profile, name: str) -> None:
        self._running = None
        order = "self_cuda_time_total" if self._device.type == "cuda" else "self_cpu_time_total"
        tracker = self._open_tracker()
        with tempfile.TemporaryDirectory(prefix="caft-") as folder:
            trace, table = Path(folder, f"{name}.json.gz"), Path(folder, f"{name}.txt")
            finished.export_chrome_trace(str(trace))
            operators = finished.key_averages().table(sort_by=order, row_limit=OPERATORS_SHOWN)
            table.write_text(operators, encoding="utf-8")
            for file in (trace, table):
                path = storage.join(self._folder, file.name)
                with storage.staged(path) as staged:
                    shutil.copyfile(file, staged)
                tracker.log_artifact(path, FOLDER)
        tracker.close()
        print(f"train: profile: {storage.join(self._folder, trace.name)}", flush=True)
