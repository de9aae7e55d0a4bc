"""What the workers of one training step send each other, in bytes and in time.
Arithmetic alone: the model's configuration, the batch and a network in, a prediction out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from caft.config import ModelConfig
from caft.model import CAFT
from pipelines.train.schedule import parameter_groups

Collective = Literal["all_gather", "all_reduce"]
ALIGNMENT = 2  # numbers: ZeRO pads each parameter group to a multiple of this per worker
BACKWARD_SHARE = 2 / 3  # of a step's computation: gradients may travel while it runs


@dataclass(frozen=True)
class Exchange:
    """One tensor that all workers gather or sum up."""

    name: str
    collective: Collective
    payload_bytes: int  # of the whole tensor that every worker has afterwards
    in_backward: bool = False  # may travel while gradients are still computed

    def sent_bytes(self, workers: int) -> float:
        """What each worker sends, by a ring: it passes on all shares but one, twice to sum up."""
        passes = 2 if self.collective == "all_reduce" else 1
        return passes * (workers - 1) / workers * self.payload_bytes

    def hops(self, workers: int) -> int:
        """Messages that wait for each other."""
        return (2 if self.collective == "all_reduce" else 1) * (workers - 1)


@dataclass(frozen=True)
class Step:
    """What decides the bytes of a step."""

    model: ModelConfig
    global_batch: int
    parts: int  # sub-captions of an image, extra ones included
    workers: int
    zero_stage: Literal[0, 1, 2] = 0
    feature_bytes: int = 4  # of one number of an embedding: 2 under bfloat16
    gradient_bytes: int = 4
    weight_bytes: int = 4  # trained weights stay float32

    def exchanges(self) -> tuple[Exchange, ...]:
        """Everything larger than a few numbers, in order of time.

        Texts go to all workers once; what comes back is every worker's gradient of all of them,
        where a loss reads them. Gradients are summed up during backward at stage 0. At stages 1 and
        2 DeepSpeed does so with nothing beside it, everywhere, though each worker steps its own
        part only, and then gathers the new weights.
        """
        losses, width = self.model.losses, self.model.embed_dim
        parts = self.parts if losses.parts else 1
        of_parts, of_whole = (
            self.global_batch * rows * width * self.feature_bytes for rows in (parts, 1)
        )
        groups = trained_numbers(self.model)
        exchanges = [
            Exchange("part embeddings", "all_gather", of_parts),
            Exchange("whole-text embeddings", "all_gather", of_whole),
        ]
        if losses.whole == "softmax":
            exchanges.append(Exchange("image embeddings", "all_gather", of_whole))
            exchanges.append(Exchange("gradients of image embeddings", "all_reduce", of_whole))
        if losses.has_whole:
            exchanges.append(Exchange("gradients of whole-text embeddings", "all_reduce", of_whole))
        if losses.parts:
            exchanges.append(Exchange("gradients of part embeddings", "all_reduce", of_parts))
        gradients = sum(groups) * self.gradient_bytes
        exchanges.append(
            Exchange("gradients of weights", "all_reduce", gradients, self.zero_stage == 0)
        )
        if self.zero_stage:
            padded = sum(padded_numbers(group, self.workers) for group in groups)
            exchanges.append(Exchange("weights", "all_gather", padded * self.weight_bytes))
        return tuple(exchanges)


def trained_numbers(model: ModelConfig) -> list[int]:
    """Trained parameters of each of the optimiser's groups."""
    with torch.device("meta"):
        groups = parameter_groups(CAFT(model), weight_decay=0.0)
    return [sum(p.numel() for p in group["params"] if p.requires_grad) for group in groups]


def padded_numbers(numbers: int, workers: int) -> int:
    """The length of a parameter group that is cut into equal parts."""
    return math.ceil(numbers / (ALIGNMENT * workers)) * ALIGNMENT * workers


@dataclass(frozen=True)
class Network:
    """Links between workers. A ring runs through all GPUs of a node, then on to the next node, over
    all cards that a node has."""

    name: str
    gpus_per_node: int
    gpu_bytes_per_s: float  # from a GPU to its neighbour in the node, one way
    node_bytes_per_s: float  # from a node to the next, one way, all its cards together
    gpu_hop_s: float  # latency of one message inside a node
    node_hop_s: float  # and from a node to the next
    efficiency: float = 0.8  # of a link's rate that a collective reaches

    def seconds(self, exchange: Exchange, workers: int) -> float:
        """All members of a ring send at a time, so the slowest link sets the pace of each hop."""
        if workers == 1:
            return 0.0
        rate, hop = self.gpu_bytes_per_s, self.gpu_hop_s
        if workers > self.gpus_per_node:
            rate, hop = min(rate, self.node_bytes_per_s), max(hop, self.node_hop_s)
        transfer = exchange.sent_bytes(workers) / (rate * self.efficiency)
        return transfer + exchange.hops(workers) * hop


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step whose computation takes `compute` on every worker."""

    compute: float
    waiting: float  # for messages that nothing can hide
    in_backward: float  # for messages that backward may hide

    @property
    def whole(self) -> float:
        """What travels in backward costs what is longer than that."""
        left = max(0.0, self.in_backward - BACKWARD_SHARE * self.compute)
        return self.compute + self.waiting + left


def step_time(
    exchanges: Sequence[Exchange], workers: int, network: Network, compute_s: float
) -> StepTime:
    """What a step takes on a network, given what it computes."""
    hidden = sum(network.seconds(e, workers) for e in exchanges if e.in_backward)
    open_ = sum(network.seconds(e, workers) for e in exchanges if not e.in_backward)
    return StepTime(compute_s, open_, hidden)
