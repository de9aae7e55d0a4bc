"""Zero-shot classification: where an image's own class stands among all, and how often first.
Ties count as in retrieval: a wrong class that is not strictly below stands before the right one."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from caft.metrics.retrieval import ranks

TOP = (1, 5)


def label_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """Ranks (N,) from 1 of the right classes `labels` (N,) in scores (N, C)."""
    return ranks(scores.T, labels)[0]


def classification_scores(rank: Tensor, labels: Tensor) -> dict[str, float]:
    """`top1`, `top5` and `mean_per_class` of N images, as fractions, from `label_ranks`.

    The last is the mean of each class's top-1, over the classes that occur.
    """
    scores = {f"top{k}": (rank <= k).double().mean().item() for k in TOP}
    right = np.bincount(labels.numpy(), weights=(rank <= 1).numpy())
    count = np.bincount(labels.numpy())
    return scores | {"mean_per_class": float(np.mean(right[count > 0] / count[count > 0]))}


def class_features(prompts: Tensor, classes: int) -> Tensor:
    """One feature per class (C, ...) from those of its P prompts (C * P, ...): their mean after
    normalisation, as CLIP combines prompts (Radford et al., 2021)."""
    return torch.stack(F.normalize(prompts.float(), dim=-1).chunk(classes)).mean(dim=1)
