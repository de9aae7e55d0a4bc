"""What each Ray Train worker runs: batches in, DeepSpeed steps, metrics and checkpoints out.
What a step draws depends on seed and step alone: a restarted worker goes on as before."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from caft.checkpoint import WEIGHTS, load_weights, save_weights, write_manifest
from caft.config import ModelConfig
from caft.losses import draw_negatives
from caft.model import CAFT, create_model
from caft.packing import COMPILED_ROW_MULTIPLE
from pipelines.progress import Progress
from pipelines.superpixels import complete_superpixels
from pipelines.tracking import Tracker
from pipelines.train.config import TrainConfig
from pipelines.train.distributed import LossMeter, TrainingModel
from pipelines.train.ingest import Batch, Loader, iter_batches
from pipelines.train.plan import EpochPlan
from pipelines.train.schedule import learning_rate, parameter_groups

CHECKPOINTS, FINAL = "checkpoints", "final"


@dataclass(frozen=True)
class TrainJob:
    """What the driver resolved and every worker needs."""

    config: TrainConfig
    model: ModelConfig
    plan: EpochPlan
    total_steps: int
    dataset_fingerprint: str
    run_id: str

    @property
    def manifest(self) -> dict[str, Any]:
        return {
            "dataset": self.config.dataset,
            "dataset_fingerprint": self.dataset_fingerprint,
            "mlflow_run_id": self.run_id,
        }


def train_worker(settings: dict[str, TrainJob]) -> None:
    """The Ray Train worker function."""
    job = settings["job"]
    config, output = job.config, Path(job.config.output)
    if not config.scaling.use_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    from pipelines.train.checkpointing import newest_checkpoint, restore_moments, save_checkpoint

    if config.scaling.threads_per_worker is not None:
        torch.set_num_threads(config.scaling.threads_per_worker)
    torch.manual_seed(config.seed)
    model = create_model(job.model)
    resume = _from_first_worker(lambda: newest_checkpoint(output / CHECKPOINTS, job.model))
    if resume is not None:
        load_weights(model, resume / WEIGHTS)
    model.recompute_activations(config.scaling.recompute_activations)
    trained = TrainingModel(model, config.block_size, config.scaling.compile)
    engine = _start_engine(trained, config)
    step = restore_moments(resume, engine, model) if resume is not None else 0
    device = engine.device
    rank, workers = dist.get_rank(), dist.get_world_size()

    tracker = (
        Tracker.start(config.tracking, "train", output.name, config, run_id=job.run_id)
        if rank == 0
        else None
    )
    progress = Progress("train", job.total_steps, "steps", config.progress_every_s, done=step)
    meter = LossMeter.empty(job.model.losses, device)
    loader = Loader(config.dataset, config.split, job.model, config.ingest)
    batches = iter_batches(job.plan, loader, rank, workers, step, job.total_steps)
    losses: dict[str, float] = {}
    clock, waited = time.monotonic(), 0.0
    while step < job.total_steps:
        asked = time.monotonic()
        batch = next(batches)
        waited += time.monotonic() - asked
        meter.add(_train_step(engine, model, batch, step, job, rank))
        step += 1
        if step % config.log_every_steps == 0 or step == job.total_steps:
            steps = meter.steps
            losses = meter.take()
            seconds = time.monotonic() - clock
            if tracker is not None:
                rates = {
                    "train/images_per_s": steps * config.global_batch / seconds,
                    "train/input_wait_fraction": waited / seconds,
                    "train/lr": engine.optimizer.param_groups[0]["lr"],
                    **{f"train/{name}_scale": scale for name, scale in model.scales().items()},
                }
                tracker.log_metrics(losses | rates, step=step)
            clock, waited = time.monotonic(), 0.0
        if rank == 0:
            progress.update(1, **{name.removeprefix("loss/"): v for name, v in losses.items()})
        if step % config.checkpoint.every_steps == 0 or step == job.total_steps:
            info = {**job.manifest, "metrics": losses}
            folder = output / CHECKPOINTS
            save_checkpoint(folder, engine, model, step, info, config.checkpoint.keep)
    if rank == 0:
        save_weights(model, output / FINAL)
        write_manifest(output / FINAL, {"step": step, **job.manifest, "metrics": losses})
    if tracker is not None:
        tracker.close()


def _train_step(engine: Any, model: CAFT, batch: Batch, step: int, job: TrainJob, rank: int) -> Any:
    config, device = job.config, engine.device
    lr = learning_rate(step, job.total_steps, config.optimizer)
    for group in engine.optimizer.param_groups:
        group["lr"] = lr
    torch.manual_seed(hash((config.seed, step, rank)))  # dropout
    images = batch.images.to(device, non_blocking=True)
    superpixels = complete_superpixels(images, batch.superpixels, model.superpixel_labels)
    texts = model.pack_texts(batch.tokens, COMPILED_ROW_MULTIPLE if config.scaling.compile else 1)
    negatives = draw_negatives(
        config.global_batch,
        batch.tokens.shape[1],
        config.seed * job.total_steps + step,
        min(config.block_size, config.global_batch),
    )
    loss = engine(
        images,
        superpixels,
        texts.to(device, non_blocking=True),
        negatives.to(device, non_blocking=True),
    )
    engine.backward(loss.total * dist.get_world_size())  # DeepSpeed averages, the loss is a sum
    engine.step()
    model.clamp_scales_()
    return loss


def _start_engine(model: TrainingModel, config: TrainConfig) -> Any:
    import deepspeed
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    # On CPUs DeepSpeed would compile its own shared-memory all-reduce behind a lock file. A worker
    # killed while it compiles leaves the lock, and every later run on that machine waits for ever.
    deepspeed.ops.__compatible_ops__[ShareMemCommBuilder.NAME] = False
    optimizer = torch.optim.AdamW(
        parameter_groups(model, config.optimizer.weight_decay),
        lr=0.0,  # set before every step
        betas=config.optimizer.betas,
        eps=config.optimizer.eps,
        fused=True,
    )
    settings = {
        "train_batch_size": config.global_batch,
        "train_micro_batch_size_per_gpu": config.global_batch // dist.get_world_size(),
        "zero_optimization": {"stage": config.deepspeed.zero_stage},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": config.optimizer.grad_clip or 0.0,
        "steps_per_print": 10**9,  # progress and MLflow say it
    }
    if config.deepspeed.precision == "bfloat16":
        settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]


def _from_first_worker(decide: Any) -> Any:
    """Run `decide` on the first worker alone and give every worker its result."""
    result = [decide() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(result, src=0)
    return result[0]
