"""Ranks a benchmark with Ray tasks, a block of images each, in the memory of one block.
Stored image features and captions' features in; rankings by kind of score out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from torch import Tensor

from caft.metrics.classification import label_ranks
from caft.retrieval import (
    OwnScores,
    PreparedTexts,
    Ranking,
    ScoreKind,
    Tally,
    add_tallies,
    image_tiles,
    join_own,
    ranking,
    score_rows,
    tile_own_scores,
    tile_tallies,
)
from caft.scoring import Features, Scorer
from pipelines.evaluate.features import StoredFeatures
from pipelines.failures import one_voice
from pipelines.progress import Progress
from pipelines.workers import RETRIES, cluster_cpus, connect

IN_FLIGHT_PER_WORKER = 2  # so that none waits while the next block is read


@dataclass(frozen=True)
class Ranker:
    """Scores of one model on the cluster. A block's result depends on the block alone, and blocks
    are joined in their order: how many tasks run, where, and how often, does not show."""

    scorer: Scorer
    num_gpus: float  # per task
    progress_every_s: float

    def rank(
        self,
        images: StoredFeatures,
        texts: Features,
        text_to_image: Sequence[int],
        kinds: Sequence[ScoreKind],
        label: str,
    ) -> dict[str, Ranking]:
        """How N images and T texts rank each other, by kind.

        Raises:
            ClusterError: a block's process was lost more often than Ray starts one again.
        """
        owner = torch.tensor(text_to_image)
        shared = self._shared(texts, kinds, owner)
        blocks = self._blocks(2 * images.count, label)
        parts = [part for found in blocks(images, _own_scores, *shared) for part in found]
        own = join_own(parts, len(owner))
        total: dict[str, Tally] = {}
        for found in blocks(images, _tallies, *shared, ray.put(own)):
            add_tallies(total, found)
        return {kind.name: ranking(total[kind.name], owner, own[kind.name]) for kind in kinds}

    def classify(
        self,
        images: StoredFeatures,
        classes: Features,
        labels: Sequence[int],
        kinds: Sequence[ScoreKind],
        label: str,
    ) -> dict[str, Tensor]:
        """Ranks (N,) of N images' own classes among C, by kind; errors as `rank`."""
        shared = self._shared(classes, kinds, torch.tensor(labels))
        blocks = self._blocks(images.count, label)
        found = list(blocks(images, _label_ranks, *shared))
        return {kind.name: torch.cat([ranks[kind.name] for ranks in found]) for kind in kinds}

    def _shared(self, texts: Features, kinds: Sequence[ScoreKind], owner: Tensor) -> list[Any]:
        """What every task gets beside its block."""
        connect()
        device = "cuda" if self.num_gpus else "cpu"
        prepared = PreparedTexts.of(self.scorer, texts, device)
        values = (device, kinds, self.scorer, prepared, owner)
        return [ray.put(value) for value in values]

    def _blocks(self, total: int, label: str) -> Callable[..., Iterator[Any]]:
        """Runs a task on each block of images; the results come in the blocks' order."""
        options: dict[str, Any] = {"max_retries": RETRIES, "num_gpus": self.num_gpus, "num_cpus": 1}
        progress = Progress(label, total, "images scored", self.progress_every_s)

        def over_blocks(
            images: StoredFeatures, function: Callable[..., Any], *shared: Any
        ) -> Iterator[Any]:
            task: Any = ray.remote(**options)(function)
            waiting: deque[tuple[int, Any]] = deque()
            with one_voice(label):
                for first, block in images.blocks():
                    rows = len(next(iter(block.values())))
                    waiting.append((rows, task.remote(block, first, *shared)))
                    while len(waiting) > self._in_flight():
                        rows, result = waiting.popleft()
                        yield ray.get(result)
                        progress.update(rows)
                for rows, result in waiting:
                    yield ray.get(result)
                    progress.update(rows)

        return over_blocks

    def _in_flight(self) -> int:
        if not self.num_gpus:
            return IN_FLIGHT_PER_WORKER * cluster_cpus()
        gpus = float(ray.cluster_resources().get("GPU", 1))
        return IN_FLIGHT_PER_WORKER * max(1, int(gpus / self.num_gpus))


@torch.inference_mode()
def _own_scores(
    block: dict[str, Tensor],
    first: int,
    device: str,
    kinds: Sequence[ScoreKind],
    scorer: Scorer,
    texts: PreparedTexts,
    owner: Tensor,
) -> list[OwnScores]:
    scorer, texts = scorer.to(device), texts.to(torch.device(device))
    return [
        tile_own_scores(scorer, _on(device, tile), start, texts, owner, kinds)
        for start, tile in image_tiles(block, first)
    ]


@torch.inference_mode()
def _tallies(
    block: dict[str, Tensor],
    first: int,
    device: str,
    kinds: Sequence[ScoreKind],
    scorer: Scorer,
    texts: PreparedTexts,
    owner: Tensor,
    own: Mapping[str, Tensor],
) -> dict[str, Tally]:
    scorer, texts = scorer.to(device), texts.to(torch.device(device))
    total: dict[str, Tally] = {}
    for start, tile in image_tiles(block, first):
        tile = _on(device, tile)
        add_tallies(total, tile_tallies(scorer, tile, start, texts, owner, own, kinds))
    return total


@torch.inference_mode()
def _label_ranks(
    block: dict[str, Tensor],
    first: int,
    device: str,
    kinds: Sequence[ScoreKind],
    scorer: Scorer,
    classes: PreparedTexts,
    labels: Tensor,
) -> dict[str, Tensor]:
    scorer, classes = scorer.to(device), classes.to(torch.device(device))
    ranks: dict[str, list[Tensor]] = {kind.name: [] for kind in kinds}
    starts = range(0, classes.count, classes.tile)
    for start, tile in image_tiles(block, first):
        rows = score_rows(scorer, _on(device, tile), classes, kinds, starts)
        for name, scores in rows.items():
            own = labels[start : start + len(scores)]
            ranks[name].append(label_ranks(scores.cpu(), own))
    return {name: torch.cat(parts) for name, parts in ranks.items()}


def _on(device: str, features: Features) -> Features:
    return {name: tensor.to(device) for name, tensor in features.items()}
