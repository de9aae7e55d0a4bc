"""Zero-shot classification: where an image's own class stands among all, and how often first.
Ties count as in retrieval: a wrong class that is not strictly below stands before the right one."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from caft.metrics.intervals import Estimate, class_mean, ratio
from caft.metrics.retrieval import ranks

TOP = (1, 5)


def label_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """Ranks (N,) from 1 of the right classes `labels` (N,) in scores (N, C)."""
    return ranks(scores.T, labels)[0]


def classification_scores(rank: Tensor, labels: Tensor) -> dict[str, float]:
    """`top1`, `top5` and `mean_per_class` of N images, as fractions, from `label_ranks`.

    The last is the mean of each class's top-1, over the classes that occur.
    """
    found = classification_estimates(rank.numpy(), labels.numpy())
    return {name: estimate.value for name, estimate in found.items()}


def classification_estimates(rank: np.ndarray, labels: np.ndarray) -> dict[str, Estimate]:
    """The same with what each image adds."""
    ones = np.ones(len(rank))
    found = {f"top{k}": ratio((rank <= k).astype(float), ones) for k in TOP}
    right = (rank <= 1).astype(float)
    per_class = class_mean(np.arange(len(rank)), labels, right, ones, len(rank))
    return found | {"mean_per_class": per_class}


def class_features(prompts: Tensor, classes: int) -> Tensor:
    """One feature per class (C, ...) from those of its P prompts (C * P, ...): their mean after
    normalisation, as CLIP combines prompts (Radford et al., 2021)."""
    return torch.stack(F.normalize(prompts.float(), dim=-1).chunk(classes)).mean(dim=1)
