"""One training step on one worker: loss and gradients, then the update.
What a step draws depends on the seed and the step alone, never on who computes it."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from caft.batch_norm import update_running_statistics_
from caft.dropout import Draws
from caft.losses import CAFTLoss, draw_negatives
from pipelines.superpixel_columns import filled_superpixels
from pipelines.train.config import TrainConfig
from pipelines.train.deepspeed.engine import backward
from pipelines.train.deepspeed.loss_scale import fix_loss_scale
from pipelines.train.deepspeed.sharding import clamp_scales_
from pipelines.train.distributed import TrainingModel
from pipelines.train.ingest import Batch
from pipelines.train.inputs import DeviceBatch, Sender


def compute_gradients(
    engine: Any,
    trained: TrainingModel,
    batch: Batch | DeviceBatch,
    step: int,
    config: TrainConfig,
) -> CAFTLoss:
    """This worker's share of the loss; the engine then holds the whole loss's gradients.

    Where a worker's share is not finite, all gradients of all workers are NaN, so that the
    gradients alone tell whether a step may be applied.
    """
    loss = engine(*model_inputs(engine, trained, batch, step, config))
    total = loss.total
    finite = torch.where(total.isfinite(), 1.0, torch.nan)
    fix_loss_scale(engine)
    backward(engine, total * finite)
    return loss


def model_inputs(
    engine: Any,
    trained: TrainingModel,
    batch: Batch | DeviceBatch,
    step: int,
    config: TrainConfig,
) -> tuple[Any, ...]:
    """What `TrainingModel` is called with at `step`, on the engine's device."""
    model, device = trained.model, torch.device(engine.device)
    if isinstance(batch, Batch):
        batch = Sender(model, config, device).send(batch)
    images, count, texts = batch.images, len(batch.images), batch.texts

    def cut(images: Tensor) -> Tensor:
        shares = images.split(config.scaling.micro_batch or count)
        return torch.cat([model.superpixel_labels(share) for share in shares])

    if batch.superpixels is None:
        superpixels = cut(images)
    else:
        superpixels = filled_superpixels(images, batch.superpixels, batch.missing, cut)
    seed = torch.full((), _seed(config.seed, step), dtype=torch.int64, device=device)
    negatives = draw_negatives(
        config.global_batch,
        batch.host.tokens.shape[1],
        seed,
        min(config.block_size, config.global_batch),
    )
    first = dist.get_rank() * count
    draws = Draws(seed, torch.arange(first, first + count, device=device))
    return images, superpixels, texts if len(texts) > 1 else texts[0], negatives, draws


def apply_gradients(engine: Any, trained: TrainingModel, lr: float) -> Tensor:
    """Step the optimiser and what follows a step by other rules: scales, running statistics.

    With gradients that are not finite nothing changes, on any worker.

    Returns:
        Whether nothing changed: a boolean scalar, on the host at ZeRO stages 1 to 3, whose
        optimisers ask the device themselves, and on the device at stage 0.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    engine.step()
    if engine.zero_optimization():
        skipped = torch.tensor(engine.optimizer.overflow)
    else:
        skipped = engine.optimizer.found_inf.bool()
    clamp_scales_(trained.model)
    statistics = trained.batch_statistics / dist.get_world_size()
    dist.all_reduce(statistics)
    applied = ~skipped.to(engine.device, non_blocking=True)
    update_running_statistics_(trained.model, statistics, applied)
    return skipped


def _seed(seed: int, step: int) -> int:
    """A number of 63 bits for one step; neighbouring steps and seeds share nothing."""
    digest = hashlib.sha256(f"{seed}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
