"""Training samples of a caption set: four chunks in reading order, then extra parts.
Between the dataset's sentence lists and the tokenizer (model section 4); seeded by the caller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MIN_LONG_SENTENCES = 3  # a long caption with fewer says no more than a short one
MAX_CHUNK_SENTENCES = 3
FALLBACK_SENTENCES = 8  # that take the place of a long caption where no caption is long
JOINER = ". "


def sample_parts(
    captions: Sequence[Mapping[str, Any]], rng: np.random.Generator, chunks: int, extra: int
) -> list[str]:
    """Draw `chunks + extra` sub-captions of one image, as the published training does.

    The first `chunks` cut one long caption in order and feed parts and whole. Each of the others
    merges 1 to 3 random sentences of the other captions and feeds the part losses alone; they are
    drawn independently of each other. Where no long caption has three sentences, up to eight
    random sentences of all captions, in the order in which they stand, take the place of the long
    one, and the others are drawn from all captions.

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
    if long:
        chosen = long[rng.integers(len(long))]
        sentences = list(captions[chosen]["sentences"])
        others = [s for n, c in enumerate(captions) if n != chosen for s in c["sentences"]]
        pool = others or sentences
    else:
        pool = [s for caption in captions for s in caption["sentences"]]
        if not pool:
            raise ValueError("a row without a sentence cannot be sampled")
        kept = np.sort(rng.permutation(len(pool))[:FALLBACK_SENTENCES])
        sentences = [pool[n] for n in kept]
    return random_chunks(sentences, chunks, rng) + _merged(pool, extra, rng)


def random_chunks(sentences: Sequence[str], chunks: int, rng: np.random.Generator) -> list[str]:
    """Cut sentences in order into exactly `chunks` consecutive chunks of random sizes 1 to 3.

    Up to `chunks` sentences: each in order, then random repeats. Too many for chunks of 3: the
    last chunk takes the rest, and the tokenizer cuts it.
    """
    count = len(sentences)
    if count <= chunks:
        repeats = rng.integers(count, size=chunks - count)
        return [*sentences, *(sentences[n] for n in repeats)]
    drawn = rng.random(chunks).tolist()
    parts, start = [], 0
    for place, number in enumerate(drawn):
        left, later = count - start, chunks - place - 1
        if later == 0:
            size = left
        else:
            smallest = min(MAX_CHUNK_SENTENCES, max(1, left - MAX_CHUNK_SENTENCES * later))
            largest = min(MAX_CHUNK_SENTENCES, left - later)
            size = smallest + int(number * (largest - smallest + 1))
        parts.append(JOINER.join(sentences[start : start + size]))
        start += size
    return parts


def _merged(sentences: Sequence[str], parts: int, rng: np.random.Generator) -> list[str]:
    """Parts of 1 to 3 sentences, independent of each other. Those of one part are different
    sentences, unless there are fewer than it takes."""
    merged = []
    # One call for all parts: a size and three places each, uniform in [0, 1).
    for size, *places in rng.random((parts, 1 + MAX_CHUNK_SENTENCES)).tolist():
        places = places[: 1 + int(size * MAX_CHUNK_SENTENCES)]
        taken: list[int] = []
        left = len(sentences)
        for place in places:
            n = int(place * left)
            if len(places) <= len(sentences):
                left -= 1  # n counts the sentences that are not taken yet
                for earlier in sorted(taken):
                    n += n >= earlier
            taken.append(n)
        merged.append(JOINER.join([sentences[n] for n in taken]))
    return merged
