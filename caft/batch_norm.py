"""Batch normalisation whose statistics are those of logical blocks of images.
The stem's norm: torch's own until training names the blocks, and then the same on any number of
workers and in any micro-batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class NormBlocks:
    """How the images of a global batch fall into blocks: every `images` consecutive ones.

    A batch of a multiple of `images` is normalised on the spot. Another one is this worker's equal
    share of the global batch: its blocks span workers, and `gather` must concatenate the rows of
    all workers in rank order, with gradients.
    """

    images: int
    rank: int = 0
    gather: Callable[[Tensor], Tensor] = lambda local: local


class BlockBatchNorm(nn.BatchNorm2d):
    """BatchNorm2d that, once it has `blocks`, trains on the statistics of each block.

    Running statistics then change in `update_running_statistics_` alone: a forward that runs again
    in backward must not count twice.
    """

    blocks: NormBlocks | None = None
    frozen = False  # keeps its running statistics in training, and normalises by them
    statistics: Tensor  # (2, C): mean over the blocks of the last forward's mean and variance

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        if self.frozen:
            weights = (self.running_mean, self.running_var, self.weight, self.bias)
            return F.batch_norm(features, *weights, eps=self.eps)
        if self.blocks is None or not self.training:
            return super().forward(features)
        if len(features) % self.blocks.images:
            return self._shared(features, self.blocks)
        return self._local(features, self.blocks.images)

    def follow_(self, mean: Tensor, variance: Tensor, applied: Tensor) -> None:
        """Move the running statistics a step towards a mean and an unbiased variance (C,), where
        `applied`, a boolean scalar, says so."""
        momentum = self.momentum
        assert momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        for running, met in ((self.running_mean, mean), (self.running_var, variance)):
            running.copy_(torch.where(applied, running.lerp(met, momentum), running))
        self.num_batches_tracked += applied

    def _local(self, features: Tensor, block: int) -> Tensor:
        normalised, means, variances = [], [], []
        for images in features.split(block):
            mean, variance = torch.zeros_like(self.weight), torch.zeros_like(self.weight)
            normalised.append(
                F.batch_norm(
                    images, mean, variance, self.weight, self.bias, True, momentum=1.0, eps=self.eps
                )
            )
            means.append(mean)  # momentum 1 left the block's own there
            variances.append(variance)
        self._keep(torch.stack(means), torch.stack(variances))
        return torch.cat(normalised) if len(normalised) > 1 else normalised[0]

    def _shared(self, features: Tensor, blocks: NormBlocks) -> Tensor:
        """Pieces of equal size, none in two blocks, are known to every worker by mean and
        variance; those of a block make its own, without the error of large sums of squares."""
        count, channels, height, width = features.shape
        size = math.gcd(count, blocks.images)
        pieces = features.permute(0, 2, 3, 1).reshape(count // size, -1, channels)
        variance, mean = torch.var_mean(pieces.float(), dim=1, correction=0)  # (P, C)
        known = blocks.gather(torch.stack([mean, variance], dim=1))  # (P of all workers, 2, C)
        per_block = blocks.images // size
        if len(known) % per_block:
            raise ValueError(
                f"{len(known) * size} images of all workers are no multiple of a block of "
                f"{blocks.images}"
            )
        means, variances = known.view(-1, per_block, 2, channels).unbind(2)  # (blocks, p, C)
        mean = means.mean(dim=1)
        variance = (variances + (means - mean[:, None]).square()).mean(dim=1)  # (blocks, C)
        factor = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * factor
        own = torch.arange(len(pieces), device=pieces.device) + blocks.rank * len(pieces)
        own = own // per_block  # (P,): the block of each piece
        normalised = pieces * factor[own, None] + shift[own, None]
        values = blocks.images * height * width
        self._keep(mean, variance * (values / (values - 1)))
        normalised = normalised.to(features.dtype).view(count, height, width, channels)
        return normalised.permute(0, 3, 1, 2)

    def _keep(self, means: Tensor, variances: Tensor) -> None:
        """Remember the average of blocks (n, C), the variances unbiased as torch keeps them."""
        self.statistics = torch.stack([means.mean(dim=0), variances.mean(dim=0)]).detach()


def set_norm_blocks(model: nn.Module, blocks: NormBlocks | None) -> None:
    """Train every norm of `model` on the statistics of `blocks`; None: of whatever comes."""
    for module in model.modules():
        if isinstance(module, BlockBatchNorm):
            module.blocks = blocks


def batch_statistics(model: nn.Module) -> Tensor:
    """What the last forward of `model` met, (2, channels of all norms), without gradients."""
    found = [norm.statistics for norm in _norms(model)]
    if not found:
        return next(model.parameters()).new_zeros(2, 0)
    return torch.cat(found, dim=1)


@torch.no_grad()
def update_running_statistics_(
    model: nn.Module, statistics: Tensor, applied: Tensor | None = None
) -> None:
    """Let running statistics follow `statistics`, laid out as `batch_statistics` has them: the
    average over all blocks of a step, the same on every worker. `applied`, a boolean scalar on
    the same device, says whether the step counts; None: it does."""
    norms = _norms(model)
    if applied is None:
        applied = torch.ones((), dtype=torch.bool, device=statistics.device)
    for norm, (mean, variance) in zip(
        norms, statistics.split([norm.num_features for norm in norms], dim=1), strict=True
    ):
        norm.follow_(mean, variance, applied)


def _norms(model: nn.Module) -> list[BlockBatchNorm]:
    """The norms that train on blocks; others follow what they meet by themselves, or are frozen."""
    modules = model.modules()
    norms = (m for m in modules if isinstance(m, BlockBatchNorm))
    return [norm for norm in norms if norm.blocks is not None and not norm.frozen]
