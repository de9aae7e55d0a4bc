"""Recall of matched pairs in a matrix of scores, both ways.
A tie with a wrong item counts as a miss, so a constant model scores zero."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

RECALL_AT = (1, 5, 10)


def retrieval_recall(
    scores: Tensor | np.ndarray, text_to_image: Tensor | np.ndarray | Sequence[int]
) -> dict[str, float]:
    """Recall at 1, 5 and 10, as fractions, and median ranks.

    Args:
        scores: (N_images, N_texts), higher is better.
        text_to_image: (N_texts,) the image each text belongs to; several texts may share one.

    Returns:
        `t2i_r1`, `t2i_r5`, `t2i_r10`, `i2t_r1`, ... and `t2i_median_rank`, `i2t_median_rank`.
        An image counts as found when any of its texts is among the first k.

    Raises:
        ValueError: the shapes do not fit, or an index is no image.
    """
    return recalls(*ranks(scores, text_to_image))


def recalls(t2i: Tensor, i2t: Tensor) -> dict[str, float]:
    """What `retrieval_recall` returns, of ranks of texts' images and of images' best texts."""
    result = {}
    for name, rank in (("t2i", t2i), ("i2t", i2t)):
        for k in RECALL_AT:
            result[f"{name}_r{k}"] = (rank <= k).double().mean().item()
        result[f"{name}_median_rank"] = float(np.median(rank.cpu().numpy()))
    return result


def ranks(
    scores: Tensor | np.ndarray, text_to_image: Tensor | np.ndarray | Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Rank from 1 of the right image for each text (N_texts,), and of the best right text for
    each image that has a text, in the order of the images.

    Every wrong item that is not strictly below the right one stands before it, a NaN included.
    A right item that scores NaN or -inf (it dropped out) has rank infinity.
    """
    scores = torch.as_tensor(scores)
    owner = torch.as_tensor(text_to_image, device=scores.device).long()
    _check(scores, owner)
    texts = torch.arange(scores.shape[1], device=scores.device)
    right = torch.zeros_like(scores, dtype=torch.bool)
    right[owner, texts] = True
    found = scores.double().masked_fill(~right | scores.isnan(), -torch.inf)
    t2i = _rank(found.amax(dim=0), ~right & ~(scores < found.amax(dim=0)), dim=0)
    best = found.amax(dim=1, keepdim=True)  # (N_images, 1)
    i2t = _rank(best[:, 0], ~right & ~(scores < best), dim=1)
    return t2i, i2t[right.any(dim=1)]


def _rank(own: Tensor, before: Tensor, dim: int) -> Tensor:
    rank = 1 + before.sum(dim=dim).double()
    return rank.masked_fill(own == -torch.inf, torch.inf)


def _check(scores: Tensor, owner: Tensor) -> None:
    if scores.ndim != 2 or owner.shape != scores.shape[1:] or scores.numel() == 0:
        raise ValueError(
            f"scores {tuple(scores.shape)} and text_to_image {tuple(owner.shape)} do not fit: "
            "(N_images, N_texts) and (N_texts,) are due, neither empty"
        )
    if owner.min() < 0 or owner.max() >= len(scores):
        raise ValueError(f"text_to_image must lie in 0 .. {len(scores) - 1}")
