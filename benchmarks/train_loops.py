"""The sides of benchmarks/train_scaling.py: three loops without Ray, and the train stage itself.

All train the same model with the same loss and optimiser on the same files. Each side is made once
and then called again and again.
"""

from __future__ import annotations

import itertools
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from mlflow import MlflowClient
from torch.utils.data import DataLoader, IterableDataset

import caft
from caft.config import load_config
from caft.losses import caft_loss, draw_negatives
from pipelines.data.dataset import open_dataset
from pipelines.superpixel_columns import complete_superpixels, unpack_superpixels
from pipelines.train.config import CheckpointConfig, TrainConfig
from pipelines.train.distributed import TrainingModel
from pipelines.train.ingest import Batch, index_row_groups
from pipelines.train.loader import Loader
from pipelines.train.plan import EpochPlan
from pipelines.train.schedule import parameter_groups

RECIPE = Path(__file__).parents[1] / "configs" / "train" / "demo.yaml"
IN_MEMORY = 16  # batches that the loops over memory go round
WINDOW_STEPS, LANES = 8, 4
WARM_INTERVALS, INTERVAL = 2, 5  # of a stage's run: its first ones are start-up; steps of each
SAVE_EVERY = CheckpointConfig.model_fields["every_steps"].default


@dataclass(frozen=True)
class Settings:
    """What all sides share."""

    folder: str
    model: str
    batch: int
    device: str
    precision: str
    cpus: int = 4  # that Ray hands out
    zero_stage: int = 0
    recompute: bool = False


@dataclass(frozen=True)
class Spent:
    """What one call of a side measured; NaN where it has no such thing."""

    step_s: float
    waiting: float = float("nan")  # share of the time
    save_s: float = float("nan")  # that one checkpoint held training up

    @property
    def with_saves_s(self) -> float:
        """Seconds of a step that bears its part of a checkpoint at the default interval."""
        return self.step_s + max(0.0, self.save_s) / SAVE_EVERY


def train_config(settings: Settings, workers: int, batch: int, output: Path) -> TrainConfig:
    tracking = output.parent / "tracking"
    overrides = [
        f"dataset={settings.folder}/data", f"output={output}", f"global_batch={batch}",
        f"block_size={batch}", f"batch_norm_images={settings.batch}",
        f"ingest.lanes={LANES}", f"ingest.window_steps={WINDOW_STEPS}",
        f"log_every_steps={INTERVAL}", "progress_every_s=3600", f"model={settings.model}",
        f"scaling.num_workers={workers}", "scaling.threads_per_worker=1",
        f"scaling.use_gpu={settings.device == 'cuda'}", f"deepspeed.precision={settings.precision}",
        f"deepspeed.zero_stage={settings.zero_stage}", "ingest.extra_parts=4",
        f"scaling.recompute_activations={settings.recompute}",
        f"tracking.uri=sqlite:///{tracking / 'mlflow.db'}",
    ]  # fmt: skip
    return load_config(TrainConfig, RECIPE, overrides)


class Windows(IterableDataset):
    """Batches of the train stage's own loader functions, in one process and without Ray."""

    def __init__(self, settings: Settings) -> None:
        config = train_config(settings, 1, settings.batch, Path(settings.folder) / "none")
        model = caft.create_model(settings.model).config
        self._loader = Loader(config.dataset, config.split, model, config.ingest)
        groups = index_row_groups(open_dataset(config.dataset), config.split)
        self._batch = settings.batch
        self._plan = EpochPlan(groups, settings.batch, 1, WINDOW_STEPS, config.seed)

    def __iter__(self) -> Iterator[Batch]:
        for epoch in itertools.count():
            for window in self._plan.windows(epoch, lane=0):
                arrays = self._loader(asdict(window))
                for step in range(window.steps):
                    rows = slice(
                        step * self._plan.global_batch, (step + 1) * self._plan.global_batch
                    )
                    yield as_batch({name: array[rows] for name, array in arrays.items()})


def as_batch(arrays: dict[str, np.ndarray]) -> Batch:
    tokens = torch.from_numpy(arrays["tokens"]).long()
    length = int(tokens.argmax(dim=-1).max()) + 1
    superpixels = unpack_superpixels(arrays["superpixels"])
    return Batch(torch.from_numpy(arrays["images"]), superpixels, tokens[..., :length])


class BareLoop:
    """Plain PyTorch: the model, its loss, AdamW. From memory, or by a DataLoader that decodes in a
    process of its own."""

    def __init__(self, settings: Settings, from_files: bool) -> None:
        self._settings = settings
        self._model = caft.create_model(settings.model).to(settings.device).train()
        optimizer = train_config(settings, 1, settings.batch, Path("none")).optimizer
        self._optimizer = torch.optim.AdamW(
            parameter_groups(self._model, optimizer.weight_decay), lr=1e-5, fused=True
        )
        self._batches = from_disk(settings) if from_files else from_memory(settings)

    def __call__(self, steps: int) -> Spent:
        return timed(self._step, self._batches, steps, self._settings.device)

    def _step(self, batch: Batch, step: int) -> None:
        model, device = self._model, self._settings.device
        images = batch.images.to(device, non_blocking=True)
        superpixels = complete_superpixels(images, batch.superpixels, model.superpixel_labels)
        texts = model.pack_texts(batch.tokens).to(device, non_blocking=True)
        count = len(images)
        negatives = draw_negatives(count, batch.tokens.shape[1], step, count).to(device)
        low = self._settings.precision == "bfloat16"
        with torch.autocast(device, torch.bfloat16, enabled=low):
            features = model.encode_image(images, superpixels)
            loss = caft_loss(features, model.encode_text(texts), model, negatives, count).total
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # as the recipe has it
        self._optimizer.step()
        self._optimizer.zero_grad()
        model.clamp_scales_()


class DeepSpeedLoop:
    """The train stage's own step and engine on one worker, from memory."""

    def __init__(self, settings: Settings, batches: Iterator[Batch] | None = None) -> None:
        os.environ["LOCAL_RANK"] = "0"
        if settings.device == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
        from pipelines.train.deepspeed.engine import start_engine

        store = Path(settings.folder) / f"store-{os.getpid()}"
        backend = "nccl" if settings.device == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{store}", rank=0, world_size=1)
        self._config = train_config(settings, 1, settings.batch, Path("none"))
        self.model = caft.create_model(settings.model)
        self.model.recompute_activations(settings.recompute)
        self._trained = TrainingModel(
            self.model, self._config.block_size, batch_norm_images=self._config.batch_norm_block
        )
        self.engine = start_engine(self._trained, self._config)
        self._batches, self._device = batches or from_memory(settings), settings.device

    def __call__(self, steps: int) -> Spent:
        return timed(self._step, self._batches, steps, self._device)

    def _step(self, batch: Batch, step: int) -> None:
        from pipelines.train.step import apply_gradients, compute_gradients

        compute_gradients(self.engine, self._trained, batch, step, self._config)
        apply_gradients(self.engine, self._trained, 1e-5)


class Stage:
    """The whole train stage, a new run each time: Ray Data, Ray Train, MLflow, checkpoints.

    Steps are timed by the stage's own telemetry, after the first intervals. One checkpoint falls
    among them; what it adds to its interval is told apart.
    """

    def __init__(self, settings: Settings) -> None:
        import ray

        from pipelines.train.__main__ import WORKER_ENVIRONMENT

        self._settings = settings
        self._runs = itertools.count()
        ray.init(
            "local",
            num_cpus=settings.cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            runtime_env={"env_vars": WORKER_ENVIRONMENT},
        )

    def __call__(self, steps: int, workers: int, batches: int) -> Spent:
        """Of a run whose global batch is `batches` times that of the other loops."""
        from pipelines.train.__main__ import run

        batch = batches * self._settings.batch
        output = Path(self._settings.folder) / f"run-{next(self._runs)}" / "run"
        config = train_config(self._settings, workers, batch, output)
        intervals = WARM_INTERVALS + max(3, -(-steps // INTERVAL))
        rows = open_dataset(config.dataset).rows
        saved_after = (WARM_INTERVALS + (intervals - WARM_INTERVALS) // 2) * INTERVAL
        run(
            config.model_copy(
                update={
                    "epochs": intervals * INTERVAL / (rows // batch),
                    "checkpoint": CheckpointConfig(every_steps=saved_after),
                }
            )
        )
        run_id = caft.checkpoint.read_manifest(output / "final")["mlflow_run_id"]
        client = MlflowClient(config.tracking.uri)

        def history(name: str) -> dict[int, float]:
            logged = client.get_metric_history(run_id, f"train/{name}")
            return {metric.step: metric.value for metric in logged}

        seconds = history("step_s")
        with_save = seconds.pop(saved_after + INTERVAL)
        steady = [step for step in seconds if step > WARM_INTERVALS * INTERVAL]
        step_s = statistics.median(seconds[step] for step in steady)
        waiting = statistics.fmean(history("input_wait_fraction")[step] for step in steady)
        shutil.rmtree(output.parent)
        return Spent(step_s, waiting, (with_save - step_s) * INTERVAL)


def from_memory(settings: Settings) -> Iterator[Batch]:
    return itertools.cycle(list(itertools.islice(Windows(settings), IN_MEMORY)))


def from_disk(settings: Settings) -> Iterator[Batch]:
    return iter(DataLoader(Windows(settings), batch_size=None, num_workers=1, prefetch_factor=4))


def timed(
    step: Callable[[Batch, int], None], batches: Iterator[Batch], steps: int, device: str
) -> Spent:
    """Seconds of a step, the device's work included, in the median interval, as the stage's
    telemetry has it; and the share of all time spent waiting for batches."""
    waited, spent = 0.0, []
    for number in range(max(1, steps // INTERVAL) * INTERVAL):
        if number % INTERVAL == 0:
            started = time.perf_counter()
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        step(batch, number)
        if (number + 1) % INTERVAL == 0:
            if device == "cuda":
                torch.cuda.synchronize()
            spent.append(time.perf_counter() - started)
    return Spent(statistics.median(spent) / INTERVAL, waited / sum(spent))
