"""Shared by the train stage's tests: one run that was watched from its start to its end, twice."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from tests_support import tiny_config

from caft.checkpoint import read_manifest
from caft.config import load_config
from pipelines.train.__main__ import run
from pipelines.train.config import TrainConfig

RECIPE = Path(__file__).parents[2] / "configs" / "train" / "demo.yaml"


@dataclass
class WatchedRun:
    """12 steps of 8 images on two workers, logged every 2 and evaluated every 4 of them, then
    taken up again from step 4 as if all that came after had been lost."""

    config: TrainConfig
    first_seconds: float  # of the whole first attempt
    first: Run  # as MLflow knew it after the first attempt

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.config.tracking.uri)

    def history(self, name: str) -> list[tuple[int, float]]:
        """Steps and values of a metric, in the order of the steps, doubled ones included."""
        logged = self.client.get_metric_history(self.first.info.run_id, name)
        return sorted((metric.step, metric.value) for metric in logged)


@pytest.fixture(scope="session")
def watched_config(dataset_folder, tmp_path_factory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("watched")
    overrides = [
        f"dataset={dataset_folder}", f"output={folder / 'run'}", "global_batch=8", "block_size=4",
        "batch_norm_images=4", "epochs=0.64", "optimizer.warmup_steps=4", "optimizer.lr=2.8e-5",
        "ingest.window_steps=3", "ingest.extra_parts=1",
        "log_every_steps=2", "checkpoint.every_steps=4", "checkpoint.keep=4",
        "evaluation={split: test_scenes, every_steps: 4, images: 20, batch_size: 8}",
        "scaling.max_failures=0",
        f"tracking.uri=sqlite:///{folder / 'mlflow.db'}",
    ]  # fmt: skip
    config = load_config(TrainConfig, RECIPE, overrides)
    return config.model_copy(update={"model": tiny_config()})


@pytest.fixture(scope="session")
def watched_run(watched_config, ray_cluster) -> WatchedRun:
    output = Path(watched_config.output)
    started = time.monotonic()
    run(watched_config)
    seconds = time.monotonic() - started
    client = MlflowClient(watched_config.tracking.uri)
    first = client.get_run(read_manifest(output / "final")["mlflow_run_id"])
    (output / "train.json").unlink()
    shutil.rmtree(output / "final")
    kept = {step: output / "checkpoints" / f"step-{step:08d}" for step in (8, 12)}
    for folder in kept.values():
        shutil.move(folder, output / folder.name)  # later tests score them by hand
    run(watched_config)
    return WatchedRun(watched_config, seconds, first)
