"""Ranks embedded images: all by the whole embedding, the best again by the model's own score.
Between a query and what is printed and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from caft.retrieval import PreparedTexts, ScoreKind, image_tiles, score_rows
from caft.scoring import Features, Scorer
from caft.search import nearest
from pipelines.embed.embedding import Embedding
from pipelines.evaluate.adapters import Adapter
from pipelines.search.model import Query, image_columns
from pipelines.search.pictures import read_images

ENCODED_AT_ONCE = 16  # images without stored fine embeddings


@dataclass(frozen=True)
class Hit:
    """A found image.

    Attributes:
        row: its number in the embedding.
        cosine: of its whole embedding with the query's.
        score: the model's own, by which the best are ranked again; None of the others.
    """

    row: int
    key: str
    url: str
    cosine: float
    score: float | None = None


@torch.inference_mode()
def rank(
    embedding: Embedding, adapter: Adapter, query: Query, count: int, rerank: int, alpha: float
) -> list[Hit]:
    """The best images of an embedding for a query.

    Args:
        rerank: how many of the best by the whole are ranked again by `alpha` x the parts' logit +
            (1 - `alpha`) x the whole's; 0: none.

    An image whose fine embedding is not kept, and that cannot be read any more, stays behind those
    that are ranked again.

    Raises:
        DataError: a part of the embedding is missing or damaged.
    """
    best = nearest(embedding.whole, query.whole, max(count, rerank))
    rows, cosines = best.rows[0].tolist(), best.scores[0].tolist()
    about = embedding.take(rows, ["key", "url"])
    hits = [
        Hit(row, one["key"], one["url"], cosine)
        for row, cosine, one in zip(rows, cosines, about, strict=True)
    ]
    if rerank and query.texts is not None:
        again = hits[:rerank]
        scores = _scores(embedding, adapter, query.texts, [hit.row for hit in again], alpha)
        scored = [Hit(hit.row, hit.key, hit.url, hit.cosine, scores.get(hit.row)) for hit in again]
        # Sorting is stable: of equal scores the greater cosine comes first.
        scored.sort(key=lambda hit: -torch.inf if hit.score is None else hit.score, reverse=True)
        hits = [*scored, *hits[rerank:]]
    return hits[:count]


def _scores(
    embedding: Embedding,
    adapter: Adapter,
    texts: Features,
    rows: Sequence[int],
    alpha: float,
) -> dict[int, float]:
    """The model's score of the caption with some images, by row."""
    scorer = adapter.scorer()
    scores: dict[int, float] = {}
    if embedding.has_fine:
        fine = [torch.from_numpy(found["fine"]) for found in embedding.take(rows, ["fine"])]
        whole = torch.from_numpy(embedding.whole[list(rows)])
        found = caption_scores(scorer, {"whole": whole, "fine": torch.stack(fine)}, texts, alpha)
        return dict(zip(rows, found.tolist(), strict=True))
    for start in range(0, len(rows), ENCODED_AT_ONCE):
        some = rows[start : start + ENCODED_AT_ONCE]
        images = read_images(embedding, some)
        readable = [n for n, one in enumerate(images) if one["image"] is not None]
        if readable:
            features = image_columns(adapter, [images[n] for n in readable])
            found = caption_scores(scorer, features, texts, alpha)
            scores |= {some[n]: value for n, value in zip(readable, found.tolist(), strict=True)}
    return scores


def caption_scores(scorer: Scorer, images: Features, texts: Features, alpha: float) -> Tensor:
    """The model's score (N,) of N images with one caption."""
    prepared = PreparedTexts(scorer.prepare_texts(texts), 1, 1)
    kind = ScoreKind("score", alpha)
    tiles = [
        score_rows(scorer, tile, prepared, [kind], [0])[kind.name]
        for _, tile in image_tiles(images)
    ]
    return torch.cat(tiles)[:, 0]
