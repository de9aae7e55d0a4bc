"""One training step on one worker: loss and gradients, then the update.
What a step draws depends on the seed and the step alone, never on who computes it."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import torch.distributed as dist

from caft.batch_norm import update_running_statistics_
from caft.dropout import Draws
from caft.losses import CAFTLoss, draw_negatives
from caft.packing import COMPILED_ROW_MULTIPLE
from pipelines.superpixels import complete_superpixels
from pipelines.train.config import TrainConfig
from pipelines.train.distributed import TrainingModel
from pipelines.train.ingest import Batch
from pipelines.train.sharding import clamp_scales_


def compute_gradients(
    engine: Any, trained: TrainingModel, batch: Batch, step: int, config: TrainConfig
) -> CAFTLoss:
    """This worker's share of the loss; the engine then holds the whole loss's gradients."""
    model, device = trained.model, engine.device
    count = len(batch.images)
    micro_batch = config.scaling.micro_batch or count
    images = batch.images.to(device, non_blocking=True)
    given = batch.superpixels
    superpixels = torch.cat(
        [
            complete_superpixels(
                images[rows], None if given is None else given[rows], model.superpixel_labels
            )
            for rows in _shares(count, micro_batch)
        ]
    )
    row_multiple = COMPILED_ROW_MULTIPLE if config.scaling.compile else 1
    texts = [
        model.pack_texts(batch.tokens[rows], row_multiple).to(device, non_blocking=True)
        for rows in _shares(count, micro_batch)
    ]
    seed = _seed(config.seed, step)
    negatives = draw_negatives(
        config.global_batch,
        batch.tokens.shape[1],
        seed,
        min(config.block_size, config.global_batch),
    ).to(device, non_blocking=True)
    first = dist.get_rank() * count
    draws = Draws(
        torch.tensor(seed).to(device, non_blocking=True),
        torch.arange(first, first + count, device=device),
    )
    loss = engine(images, superpixels, texts if len(texts) > 1 else texts[0], negatives, draws)
    engine.backward(loss.total * dist.get_world_size())  # DeepSpeed averages, the loss is a sum
    return loss


def apply_gradients(engine: Any, trained: TrainingModel, lr: float) -> None:
    """Step the optimiser and what follows a step by other rules: scales, running statistics."""
    for group in engine.optimizer.param_groups:
        group["lr"] = lr
    engine.step()
    clamp_scales_(trained.model)
    statistics = trained.batch_statistics / dist.get_world_size()
    dist.all_reduce(statistics)
    update_running_statistics_(trained.model, statistics)


def _shares(count: int, micro_batch: int) -> list[slice]:
    return [slice(first, first + micro_batch) for first in range(0, count, micro_batch)]


def _seed(seed: int, step: int) -> int:
    """A number of 63 bits for one step; neighbouring steps and seeds share nothing."""
    digest = hashlib.sha256(f"{seed}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
