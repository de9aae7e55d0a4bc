"""Retrieval of any size: tiles of images meet all captions, and only counts are kept.
Over scorers and tallies; the evaluate stage runs the same steps on many machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from caft.scoring import IMAGE_TILE, TEXT_TILE, Features, Scorer

BEST = 5  # items named per query


@dataclass(frozen=True)
class ScoreKind:
    """One way to make a score of whole and part logits (model section 6).

    A scorer of one component has that as its score, whatever `alpha`.
    """

    name: str
    alpha: float = 0.0  # weight of the part logit
    top_k: int | None = None  # per image, the texts best by whole score are kept; None: all
    best: int = BEST  # items named per query in the ranking


@dataclass(frozen=True)
class PreparedTexts:
    """All captions as a scorer takes them, with empty ones at the end to fill the last tile."""

    features: Features
    count: int
    tile: int

    @classmethod
    def of(cls, scorer: Scorer, texts: Features, device: str = "cpu") -> PreparedTexts:
        """Args:
        device: kind of device that will score them, on which the tile's size depends.
        """
        prepared = scorer.prepare_texts(texts)
        count, tile = len(next(iter(texts.values()))), TEXT_TILE[device]
        padded = {name: _padded(tensor, -count % tile) for name, tensor in prepared.items()}
        return cls(padded, count, tile)

    def to(self, device: torch.device) -> PreparedTexts:
        moved = {name: tensor.to(device) for name, tensor in self.features.items()}
        return PreparedTexts(moved, self.count, self.tile)

    def rows(self, index: Tensor | slice) -> Features:
        return {name: tensor[index] for name, tensor in self.features.items()}


@torch.inference_mode()
def rank_all(
    scorer: Scorer,
    images: Features,
    texts: Features,
    text_to_image: Tensor | Sequence[int],
    kinds: Sequence[ScoreKind],
) -> dict[str, Ranking]:
    """How N images and T texts rank each other by each kind of score, in this process.

    Memory beside the features grows with N + T and not with their product: tiles of IMAGE_TILE
    images are scored with all texts, counted and forgotten.
    """
    owner = torch.as_tensor(text_to_image).long()
    prepared = PreparedTexts.of(scorer, texts)
    tiles = list(image_tiles(images))
    own = join_own(
        [tile_own_scores(scorer, tile, first, prepared, owner, kinds) for first, tile in tiles],
        len(owner),
    )
    total: dict[str, Tally] = {}
    for first, tile in tiles:
        add_tallies(total, tile_tallies(scorer, tile, first, prepared, owner, own, kinds))
    return {kind.name: ranking(total[kind.name], owner, own[kind.name]) for kind in kinds}


def image_tiles(images: Features, first: int = 0) -> list[tuple[int, Features]]:
    """Features cut into tiles, each with the index of its first image."""
    count = len(next(iter(images.values())))
    return [
        (first + n, {name: tensor[n : n + IMAGE_TILE] for name, tensor in images.items()})
        for n in range(0, count, IMAGE_TILE)
    ]


OwnScores = tuple[Tensor, dict[str, Tensor]]  # which texts, and their scores by kind


def tile_own_scores(
    scorer: Scorer,
    images: Features,
    first: int,
    texts: PreparedTexts,
    owner: Tensor,
    kinds: Sequence[ScoreKind],
) -> OwnScores:
    """Scores of a tile's images with their own texts, bit by bit those of `tile_tallies`.

    Ranks need them before any wrong pair is counted. Only the text tiles with such a text are
    scored, unless a kind has to see all texts.
    """
    count = len(next(iter(images.values())))
    texts_here = ((owner >= first) & (owner < first + count)).nonzero()[:, 0]
    starts = sorted({int(n) // texts.tile * texts.tile for n in texts_here})
    scores: dict[str, Tensor] = {}
    for some in (True, False):
        asked = [kind for kind in kinds if (kind.top_k is None) == some]
        if not asked or not len(texts_here):
            continue
        read = starts if some else list(range(0, len(owner), texts.tile))
        rows = score_rows(scorer, images, texts, asked, read)
        columns = _columns(read, texts)
        place = torch.searchsorted(columns, texts_here.to(columns.device))
        for name, row in rows.items():
            scores[name] = own_scores(row, place, owner[texts_here].to(row.device) - first).cpu()
    return texts_here, scores


def join_own(parts: Sequence[OwnScores], texts: int) -> dict[str, Tensor]:
    """Every text's own score, by kind."""
    joined: dict[str, Tensor] = {}
    for which, scores in parts:
        for name, values in scores.items():
            joined.setdefault(name, values.new_full((texts,), -torch.inf))[which] = values
    return joined


def tile_tallies(
    scorer: Scorer,
    images: Features,
    first: int,
    texts: PreparedTexts,
    owner: Tensor,
    own: Mapping[str, Tensor],
    kinds: Sequence[ScoreKind],
) -> dict[str, Tally]:
    """What a tile's images say of all texts, by kind."""
    rows = score_rows(scorer, images, texts, kinds, range(0, len(owner), texts.tile))
    counted = {}
    for kind in kinds:
        row = rows.pop(kind.name)
        found = tally(row, first, owner.to(row.device), own[kind.name].to(row.device), kind.best)
        counted[kind.name] = found.cpu()
    return counted


def add_tallies(total: dict[str, Tally], more: Mapping[str, Tally]) -> None:
    """Join what further images say to `total`, by kind."""
    for name, part in more.items():
        total[name] = join([total[name], part]) if name in total else part


def score_rows(
    scorer: Scorer,
    images: Features,
    texts: PreparedTexts,
    kinds: Sequence[ScoreKind],
    starts: Sequence[int] | range,
) -> dict[str, Tensor]:
    """Scores (I, T') of a tile's images with the text tiles that begin at `starts`, by kind."""
    prepared = scorer.prepare_images(images)
    first = scorer.components[0]
    names = [first]
    if any(_blends(scorer, kind) and kind.top_k is None for kind in kinds):
        names.append("part")
    tiles = [
        scorer.tile(prepared, texts.rows(slice(start, start + texts.tile)), names)
        for start in starts
    ]
    width = len(_columns(starts, texts))
    rows = {name: torch.cat([tile[name] for tile in tiles], dim=1)[:, :width] for name in names}
    scores = {}
    for kind in kinds:
        blends = _blends(scorer, kind)
        if kind.top_k is None:
            scores[kind.name] = _blend(rows[first], rows["part"], kind) if blends else rows[first]
        else:
            scores[kind.name] = _reranked(scorer, prepared, rows[first], texts, kind, blends)
    return scores


def _reranked(
    scorer: Scorer,
    images: Features,
    whole: Tensor,
    texts: PreparedTexts,
    kind: ScoreKind,
    blends: bool,
) -> Tensor:
    """Rows in which each image's `top_k` best texts by whole score are blended, others -inf."""
    assert kind.top_k is not None
    best = whole.topk(min(kind.top_k, whole.shape[1]), dim=1)
    values = best.values
    if blends:
        part = [
            scorer.tile(
                {name: tensor[n : n + 1] for name, tensor in images.items()},
                texts.rows(index),
                ["part"],
            )["part"]
            for n, index in enumerate(best.indices)
        ]
        values = _blend(values, torch.cat(part), kind)
    return torch.full_like(whole, -torch.inf).scatter_(1, best.indices, values)


def _blend(whole: Tensor, part: Tensor, kind: ScoreKind) -> Tensor:
    return (1 - kind.alpha) * whole + kind.alpha * part


def _blends(scorer: Scorer, kind: ScoreKind) -> bool:
    return kind.alpha > 0 and len(scorer.components) > 1


def _columns(starts: Sequence[int] | range, texts: PreparedTexts) -> Tensor:
    """Which texts stand in the columns of the tiles that begin at `starts`."""
    device = next(iter(texts.features.values())).device
    columns = [torch.arange(start, start + texts.tile, device=device) for start in starts]
    return (every := torch.cat(columns))[every < texts.count]


def _padded(tensor: Tensor, rows: int) -> Tensor:
    return F.pad(tensor, (*(0, 0) * (tensor.ndim - 1), 0, rows))


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
