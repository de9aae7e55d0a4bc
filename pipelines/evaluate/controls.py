"""Captions changed on purpose: what a score loses without their order, sentences or truth.
Variants of a benchmark's texts alone; its images are encoded once for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from caft.errors import DataError
from caft.tokenizer import load_tokenizer
from pipelines.evaluate.config import ControlsConfig

TOKENIZER = "clip"  # lengths in tokens are this one's for every model, so that curves compare
MOST_TOKENS = 2**12  # of one word, to count them

Caption = tuple[str, ...]  # sentences


@dataclass(frozen=True)
class Variant:
    """All captions of a benchmark, changed in one way."""

    name: str
    captions: tuple[Caption, ...]

    def changed_share(self, original: Sequence[Caption]) -> float:
        """How many captions differ: one of a single sentence has no order to lose."""
        return float(np.mean([a != b for a, b in zip(self.captions, original, strict=True)]))


def variants(
    config: ControlsConfig,
    captions: Sequence[Caption],
    text_to_image: Sequence[int],
    seed: int,
) -> Iterator[Variant]:
    """The configured variants of T captions. A caption never becomes empty.

    Raises:
        DataError: no other image's sentence is there to be noise.
    """
    if config.order:
        dropped = tuple(caption[1:] or caption for caption in captions)
        yield Variant("first_sentence_dropped", dropped)
        yield Variant("first_sentence_last", tuple((*c[1:], c[0]) for c in captions))
        shuffled = tuple(
            tuple(_generator(seed, n).permutation(np.array(caption, dtype=object)).tolist())
            for n, caption in enumerate(captions)
        )
        yield Variant("sentences_shuffled", shuffled)
    for share in config.noisy_shares:
        yield Variant(f"noisy_{share:g}", noisy(captions, text_to_image, share, seed))
    for most in config.first_sentences:
        yield Variant(f"first_{most}_sentences", tuple(caption[:most] for caption in captions))
    for most in config.first_tokens:
        yield Variant(f"first_{most}_tokens", first_tokens(captions, most))


def noisy(
    captions: Sequence[Caption], text_to_image: Sequence[int], share: float, seed: int
) -> tuple[Caption, ...]:
    """Captions with `share` of their sentences, rounded and at random places, each replaced by a
    sentence drawn from all those of other images."""
    if len(set(text_to_image)) < 2:
        raise DataError(
            "controls.noisy_shares: the benchmark has one image, so no other's sentence"
        )
    owners = np.repeat(np.asarray(text_to_image), [len(caption) for caption in captions])
    pool = [sentence for caption in captions for sentence in caption]
    changed = []
    for n, caption in enumerate(captions):
        rng = _generator(seed, n)
        sentences = list(caption)
        # Drawn for all places, so that a larger share replaces what a smaller one did and more.
        places = rng.permutation(len(caption))
        for place in places[: round(share * len(caption))]:
            drawn = int(rng.integers(len(pool)))
            while owners[drawn] == text_to_image[n]:
                drawn = int(rng.integers(len(pool)))
            sentences[place] = pool[drawn]
        changed.append(tuple(sentences))
    return tuple(changed)


def first_tokens(captions: Sequence[Caption], most: int) -> tuple[Caption, ...]:
    """Captions cut before the word with which they would exceed `most` tokens; the first word
    stays in any case."""
    words = sorted({word for caption in captions for s in caption for word in s.split()})
    ids = load_tokenizer(TOKENIZER)(words, MOST_TOKENS)
    lengths = dict(zip(words, (ids.argmax(dim=1) - 1).tolist(), strict=True))  # the end is largest
    cut = []
    for caption in captions:
        left = most
        kept: list[str] = []
        for sentence in caption:
            start: list[str] = []
            for word in sentence.split():
                left -= lengths[word]
                if left < 0 and (start or kept):
                    break
                start.append(word)
            if start:
                kept.append(" ".join(start))
            if left <= 0:
                break
        cut.append(tuple(kept) or caption)
    return tuple(cut)


def _generator(seed: int, text: int) -> np.random.Generator:
    return np.random.default_rng((seed, text))
