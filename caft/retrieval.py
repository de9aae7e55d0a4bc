"""Retrieval of any size: tiles of images meet all captions, and only counts are kept.
Over scorers and tallies; the evaluate stage runs the same steps on many machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from caft.metrics.tally import Ranking, Tally, join, own_scores, ranking, tally
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
