"""Training samples of a caption set: four chunks in reading order, then extra parts.
Between the dataset's sentence lists and the tokenizer (model section 4); seeded by the caller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MIN_LONG_SENTENCES = 3  # a long caption with fewer says no more than a short one
MAX_CHUNK_SENTENCES = 3
JOINER = ". "


def sample_parts(
    captions: Sequence[Mapping[str, Any]], rng: np.random.Generator, chunks: int, extra: int
) -> list[str]:
    """Draw `chunks + extra` sub-captions of one image.

    The first `chunks` cut one long caption in order and feed parts and whole; the others merge
    1 to 3 random sentences of the other captions and feed the part losses alone. Where no long
    caption has three sentences, all are single random sentences of everything there is.

    Args:
        captions: the dataset's `captions` column: `kind` and `sentences` of each caption.

    Raises:
        ValueError: there is no sentence at all; the data stage rejects such rows.
    """
    long = [
        n
        for n, caption in enumerate(captions)
        if caption["kind"] == "long" and len(caption["sentences"]) >= MIN_LONG_SENTENCES
    ]
    if not long:
        everything = [s for caption in captions for s in caption["sentences"]]
        return _fill(everything, chunks + extra, rng)
    chosen = long[rng.integers(len(long))]
    sentences = list(captions[chosen]["sentences"])
    others = [s for n, c in enumerate(captions) if n != chosen for s in c["sentences"]]
    parts = random_chunks(sentences, chunks, rng)
    return parts + _merged(others or sentences, extra, rng)


def random_chunks(sentences: Sequence[str], chunks: int, rng: np.random.Generator) -> list[str]:
    """Cut sentences in order into exactly `chunks` consecutive chunks of random sizes 1 to 3.

    Up to `chunks` sentences: each in order, then random repeats. Too many for chunks of 3: the
    last chunk takes the rest, and the tokenizer cuts it.
    """
    count = len(sentences)
    if count <= chunks:
        repeats = rng.integers(count, size=chunks - count)
        return [*sentences, *(sentences[n] for n in repeats)]
    parts, start = [], 0
    for place in range(chunks):
        left, later = count - start, chunks - place - 1
        if later == 0:
            size = left
        elif left >= MAX_CHUNK_SENTENCES * (later + 1):
            size = MAX_CHUNK_SENTENCES
        else:
            smallest = max(1, left - MAX_CHUNK_SENTENCES * later)
            size = int(rng.integers(smallest, min(MAX_CHUNK_SENTENCES, left - later) + 1))
        parts.append(JOINER.join(sentences[start : start + size]))
        start += size
    return parts


def _merged(sentences: Sequence[str], parts: int, rng: np.random.Generator) -> list[str]:
    """Each part joins 1 to 3 sentences, drawn without replacement while enough are left."""
    drawn = []
    pool = list(rng.permutation(len(sentences)))
    for size in rng.integers(1, MAX_CHUNK_SENTENCES + 1, size=parts):
        if len(pool) < size:
            pool = list(rng.permutation(len(sentences)))
        taken, pool = pool[:size], pool[size:]
        drawn.append(JOINER.join(sentences[n] for n in taken))
    return drawn


def _fill(sentences: Sequence[str], parts: int, rng: np.random.Generator) -> list[str]:
    if not sentences:
        raise ValueError("a row without a sentence cannot be sampled")
    order = list(rng.permutation(len(sentences)))[:parts]
    order += list(rng.integers(len(sentences), size=parts - len(order)))
    return [sentences[n] for n in order]
