"""Chooses the retrievals in which a model was most sure of a wrong item.
Reads a ranking; examples.py adds pictures and captions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from caft.retrieval import Ranking


@dataclass(frozen=True)
class Mistake:
    """A query whose best item is wrong: a caption that found another image, or the reverse."""

    query: int
    rank: float  # of the right item, from 1; infinity where it dropped out
    right_score: float
    lead: float  # of the best wrong item over the right one
    found: tuple[tuple[int, float], ...]  # best items and their scores, best first


@dataclass(frozen=True)
class Mistakes:
    """The most confident of all mistakes in one way of retrieval."""

    shown: tuple[Mistake, ...]
    total: int
    queries: int


def caption_mistakes(ranking: Ranking, count: int) -> Mistakes:
    """Captions that rank a wrong image first, those with the largest lead of it first."""
    return _mistakes(
        ranking.text_rank,
        ranking.text_right,
        ranking.text_wrong,
        ranking.text_top,
        ranking.text_top_scores,
        count,
    )


def image_mistakes(ranking: Ranking, count: int) -> Mistakes:
    """Images that rank another image's caption first, of those that have captions."""
    return _mistakes(
        ranking.image_rank,
        ranking.image_right,
        ranking.image_wrong,
        ranking.image_top,
        ranking.image_top_scores,
        count,
    )


def _mistakes(
    rank: Tensor, right: Tensor, wrong: Tensor, top: Tensor, top_scores: Tensor, count: int
) -> Mistakes:
    queries = (rank > 1).nonzero()[:, 0]
    lead = (wrong - right)[queries]
    order = lead.argsort(descending=True, stable=True)[:count]
    shown = tuple(
        Mistake(
            query,
            float(rank[query]),
            float(right[query]),
            float(wrong[query] - right[query]),
            tuple(
                (item, score)
                for item, score in zip(top[query].tolist(), top_scores[query].tolist(), strict=True)
                if item >= 0
            ),
        )
        for query in queries[order].tolist()
    )
    return Mistakes(shown, len(queries), int((rank > 0).sum()))
