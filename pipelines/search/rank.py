"""Ranks embedded images: all by the whole embedding, the best again by the model's own score.
Between a query and what is printed and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from caft.retrieval import PreparedTexts, ScoreKind, image_tiles, score_rows
from caft.scoring import Features, Scorer
from caft.search import nearest
from pipelines.embed.embedding import Embedding
from pipelines.evaluate.adapters import Adapter
from pipelines.search.approximate import nearest_of_index
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
    embedding: Embedding,
    adapter: Adapter,
    query: Query,
    count: int,
    rerank: int,
    alpha: float,
    approximate: bool = False,
) -> list[Hit]:
    """The best images of an embedding for a query.

    Args:
        rerank: how many of the best by the whole are ranked again by `alpha` x the parts' logit +
            (1 - `alpha`) x the whole's; 0: none.
        approximate: whether only rows that an index proposes are compared.

    An image whose fine embedding is not kept, and that cannot be read any more, stays behind those
    that are ranked again.

    Raises:
        DataError: a part of the embedding is missing or damaged.
        ConfigError: an index is asked for, and FAISS is not installed.
    """
    most = max(count, rerank)
    if approximate:
        best = nearest_of_index(embedding, query.whole, most)
    else:
        best = nearest(embedding.whole, query.whole, most)
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
        fine = np.stack([one["fine"] for one in embedding.take(rows, ["fine"])])
        images = {"whole": embedding.whole[list(rows)], "fine": fine}
        features = {name: torch.from_numpy(np.array(array)) for name, array in images.items()}
        found = caption_scores(scorer, features, texts, alpha)
        return dict(zip(rows, found.tolist(), strict=True))
    for start in range(0, len(rows), ENCODED_AT_ONCE):
        some = rows[start : start + ENCODED_AT_ONCE]
        pictures = read_images(embedding, some)
        readable = [n for n, one in enumerate(pictures) if one["image"] is not None]
        if readable:
            features = image_columns(adapter, [pictures[n] for n in readable])
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
