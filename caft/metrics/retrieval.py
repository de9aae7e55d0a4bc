"""Recall of matched pairs in a matrix of scores, both ways.
A tie with a wrong item counts as a miss, so a constant model scores zero."""

from __future__ import annotations

import torch
from torch import Tensor

RECALL_AT = (1, 5, 10)


def retrieval_recall(scores: Tensor, text_to_image: Tensor) -> dict[str, float]:
    """Recall at 1, 5 and 10, as fractions, and median ranks.

    Args:
        scores: (N_images, N_texts), higher is better; NaN is never a match.
        text_to_image: (N_texts,) the image each text belongs to; several texts may share one.

    Returns:
        `t2i_r1`, `t2i_r5`, `t2i_r10`, `i2t_r1`, ... and `t2i_median_rank`, `i2t_median_rank`.
        An image counts as found when any of its texts is among the first k.
    """
    t2i, i2t = ranks(scores, text_to_image)
    result = {}
    for name, rank in (("t2i", t2i), ("i2t", i2t)):
        for k in RECALL_AT:
            result[f"{name}_r{k}"] = (rank <= k).float().mean().item()
        result[f"{name}_median_rank"] = rank.float().median().item()
    return result


def ranks(scores: Tensor, text_to_image: Tensor) -> tuple[Tensor, Tensor]:
    """Rank from 1 of the right image for each text, and of the best right text for each image.

    Every wrong item that scores at least as high as the right one stands before it. Images
    without a text are left out.
    """
    text_to_image = torch.as_tensor(text_to_image, device=scores.device)
    scores = scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    texts = torch.arange(scores.shape[1], device=scores.device)
    own = scores[text_to_image, texts]  # (N_texts,)
    right = torch.zeros_like(scores, dtype=torch.bool)
    right[text_to_image, texts] = True
    t2i = 1 + ((scores >= own) & ~right).sum(dim=0)
    best = scores.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)  # (N_images, 1)
    i2t = 1 + ((scores >= best) & ~right).sum(dim=1)
    return t2i, i2t[right.any(dim=1)]
