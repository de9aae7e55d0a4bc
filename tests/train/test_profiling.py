"""Windows of steps under the profiler: by configuration, on request, and cut short."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from pipelines.config import TrackingConfig
from pipelines.tracking import About, EventLog, Tracker
from pipelines.train.config import ProfileConfig
from pipelines.train.profiling import Profiler


class Job:
    """Steps of a small product under a profiler."""

    def __init__(self, folder: Path, tracking: TrackingConfig, rank: int = 0, **profile) -> None:
        self.config = ProfileConfig(**profile)
        self.tracking = tracking
        self.log = EventLog(str(folder), "train")
        self.profiler = Profiler(
            self.config, str(folder), rank, torch.device("cpu"), lambda: Tracker(self.log)
        )
        self.folder = folder / "profiles"

    def logged(self) -> set[str]:
        """Names of the files that MLflow has once the driver has sent them."""
        about = About("train", "run", "A test.")
        with Tracker.start(self.tracking, about, self.config, self.log) as driver:
            pass
        artifacts = MlflowClient(self.tracking.uri).list_artifacts(driver.run_id, "profiles")
        return {Path(artifact.path).name for artifact in artifacts}

    def steps(self, first: int, last: int, asked_at: int | None = None) -> None:
        for step in range(first, last + 1):
            self.profiler.before_step(step, asked=step == asked_at)
            with torch.profiler.record_function(f"our step {step}"):
                torch.ones(8, 8) @ torch.ones(8, 8)

    def traced(self, name: str) -> list[int]:
        """Numbers of the steps in a trace, which is what chrome://tracing opens."""
        trace = json.loads(gzip.decompress((self.folder / f"{name}.json.gz").read_bytes()))
        names = {event.get("name", "") for event in trace["traceEvents"]}
        return sorted(int(n.removeprefix("our step ")) for n in names if n.startswith("our step"))


@pytest.fixture
def job(tmp_path, tracking):
    return lambda **options: Job(tmp_path / "run", tracking, **options)


def test_the_configured_steps_are_traced_and_nothing_else(job):
    run = job(start_step=3, steps=2)
    run.steps(1, 8)
    assert run.traced("step-00000003-worker-0") == [3, 4]
    assert len(list(run.folder.iterdir())) == 2
    table = (run.folder / "step-00000003-worker-0.txt").read_text()
    assert "aten::mm" in table
    assert run.logged() == {file.name for file in run.folder.iterdir()}


def test_a_request_traces_the_next_steps_once_and_a_later_one_again(job):
    run = job(steps=1)
    run.steps(1, 4, asked_at=2)
    run.steps(5, 9, asked_at=6)
    assert run.traced("step-00000003-worker-0") == [3]
    assert run.traced("step-00000007-worker-0") == [7]
    assert len(list(run.folder.glob("*.gz"))) == 2


def test_a_request_during_a_window_is_met_after_it(job):
    run = job(start_step=2, steps=2)
    run.steps(1, 9, asked_at=3)
    assert run.traced("step-00000002-worker-0") == [2, 3]
    assert len(list(run.folder.glob("*.gz"))) == 2


def test_a_worker_that_is_not_named_traces_nothing(job):
    run = job(start_step=2, steps=1, rank=1)
    run.steps(1, 5, asked_at=3)
    assert not run.folder.exists()
    both = job(start_step=2, steps=1, rank=1, workers=[0, 1])
    both.steps(1, 5)
    assert both.traced("step-00000002-worker-1") == [2]


def test_a_window_that_the_run_cuts_short_has_the_steps_it_got(job):
    run = job(start_step=2, steps=5)
    run.steps(1, 3)
    run.profiler.close()
    assert run.traced("step-00000002-worker-0") == [2, 3]
