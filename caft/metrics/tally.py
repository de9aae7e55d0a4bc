"""Ranks, best items and margins, counted from rows of scores that need not be kept.
What `ranks` reads off a whole matrix, for matrices that are never whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Tally:
    """What some images' rows of scores say of all T texts, and of those n images.

    The order of best items is by score, then by index, so that parts may be joined in any order.
    A wrong item's NaN counts as the best score there is.
    """

    ahead: Tensor  # (T,) int64: wrong images here that are not below the text's own
    text_wrong: Tensor  # (T,) score of the best wrong image here
    text_top: Tensor  # (T, k) images here with the best scores, see `_best`
    text_top_scores: Tensor  # (T, k)
    images: Tensor  # (n,) which images
    image_rank: Tensor  # (n,) of the best right text; 0 of an image without a text
    image_right: Tensor  # (n,) score of the best right text
    image_wrong: Tensor  # (n,) score of the best wrong text
    image_top: Tensor  # (n, k) texts with the best scores
    image_top_scores: Tensor  # (n, k)

    def cpu(self) -> Tally:
        return Tally(**{field.name: getattr(self, field.name).cpu() for field in fields(Tally)})


@dataclass(frozen=True)
class Ranking:
    """How N images and T texts rank each other; ties count as misses, as in `ranks`."""

    text_to_image: Tensor  # (T,)
    text_rank: Tensor  # (T,) of the right image, from 1; infinity where it dropped out
    text_right: Tensor  # (T,) its score
    text_wrong: Tensor  # (T,) score of the best wrong image
    text_top: Tensor  # (T, k) images with the best scores, best first
    text_top_scores: Tensor  # (T, k)
    image_rank: Tensor  # (N,) of the best right text, 0 of an image without a text
    image_right: Tensor  # (N,)
    image_wrong: Tensor  # (N,)
    image_top: Tensor  # (N, k)
    image_top_scores: Tensor  # (N, k)

    @property
    def i2t(self) -> Tensor:
        """Ranks of the images that have a text, as `ranks` gives them."""
        return self.image_rank[self.image_rank > 0]


def own_scores(rows: Tensor, texts: Tensor, images: Tensor) -> Tensor:
    """Scores of texts with the images they belong to; what is no number dropped out.

    Args:
        rows: (n, T') of n images with some texts.
        texts, images: (t,) column and row of each pair.
    """
    own = rows[images, texts]
    return own.masked_fill(own.isnan(), -torch.inf)


def tally(rows: Tensor, first: int, owner: Tensor, own: Tensor, k: int) -> Tally:
    """Count n images' rows of scores (n, T).

    Args:
        first: index of the first image.
        owner: (T,) the image each text belongs to.
        own: (T,) every text's score with that image, from `own_scores`.
        k: how many of the best items to name; 0: none.
    """
    count, texts = rows.shape
    images = torch.arange(first, first + count, device=rows.device)
    right = images[:, None] == owner  # (n, T)
    wrong = rows.masked_fill(rows.isnan(), torch.inf).masked_fill(right, -torch.inf)
    found = rows.masked_fill(~right | rows.isnan(), -torch.inf).amax(dim=1)  # (n,)
    before = (~right & ~(rows < found[:, None])).sum(dim=1)
    rank = (1.0 + before).masked_fill(found == -torch.inf, torch.inf)
    shown = rows.masked_fill(rows.isnan(), torch.inf)
    image_top, image_top_scores = _best(shown, torch.arange(texts, device=rows.device), k)
    text_top, text_top_scores = _best(shown.T, images, k)
    return Tally(
        ahead=(~right & ~(rows < own)).sum(dim=0),
        text_wrong=wrong.amax(dim=0),
        text_top=text_top,
        text_top_scores=text_top_scores,
        images=images,
        image_rank=rank.masked_fill(~right.any(dim=1), 0),
        image_right=found,
        image_wrong=wrong.amax(dim=1),
        image_top=image_top,
        image_top_scores=image_top_scores,
    )


def join(tallies: Sequence[Tally]) -> Tally:
    """One tally of all the images of several."""
    last = tallies[0].text_top.shape[1]
    candidates = torch.cat([part.text_top for part in tallies], dim=1)
    scores = torch.cat([part.text_top_scores for part in tallies], dim=1)
    text_top, text_top_scores = _best(scores, candidates, last)
    joined = {
        field.name: torch.cat([getattr(part, field.name) for part in tallies])
        for field in fields(Tally)
        if field.name.startswith("image")
    }
    return Tally(
        ahead=torch.stack([part.ahead for part in tallies]).sum(dim=0),
        text_wrong=torch.stack([part.text_wrong for part in tallies]).amax(dim=0),
        text_top=text_top,
        text_top_scores=text_top_scores,
        **joined,
    )


def ranking(whole: Tally, owner: Tensor, own: Tensor) -> Ranking:
    """The ranking of all images, once every one of them has been counted."""
    order = whole.images.argsort()
    rank = (1.0 + whole.ahead).masked_fill(own == -torch.inf, torch.inf)
    return Ranking(
        text_to_image=owner,
        text_rank=rank,
        text_right=own,
        text_wrong=whole.text_wrong,
        text_top=whole.text_top,
        text_top_scores=whole.text_top_scores,
        **{
            field.name: getattr(whole, field.name)[order]
            for field in fields(Ranking)
            if field.name.startswith("image")
        },
    )


def _best(scores: Tensor, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best candidates of each row and their scores, by score and then by index; -1 where
    there are fewer, or the rest dropped out.

    Args:
        scores: (R, n).
        candidates: (n,) or (R, n); -1 is none.
    """
    by_index = candidates.expand(scores.shape).sort(dim=1, stable=True)
    by_score = scores.gather(1, by_index.indices).sort(dim=1, descending=True, stable=True)
    values = by_score.values[:, :k]
    best = by_index.values.gather(1, by_score.indices[:, :k])
    best = best.masked_fill(values == -torch.inf, -1)
    missing = (0, max(0, k - scores.shape[1]))
    return F.pad(best, missing, value=-1), F.pad(values, missing, value=-torch.inf)
