"""What a score owes to captions' order, sentences, truth and length.
Variants of a benchmark's texts alone, as its images are encoded once; and recalls by length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from caft.errors import DataError
from caft.retrieval import Ranking
from caft.tokenizer import load_tokenizer
from pipelines.evaluate.config import ControlsConfig

TOKENIZER = "clip"  # lengths in tokens are this one's for every model, so that curves compare
MOST_TOKENS = 2**12  # of one word, to count them
GROUPS = 6  # of captions, about equally many in each
CAPTIONS_AT_ONCE = 1024  # ids of so many are held in memory

Caption = tuple[str, ...]  # sentences
Group = dict[str, float]


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


def recalls_by_length(captions: Sequence[Caption], ranking: Ranking) -> dict[str, list[Group]]:
    """R@1 of T captions in groups, by their number of sentences and of CLIP's tokens.

    Returns:
        `sentences` and `tokens`, each a list of groups from short to long: `low` and `high`, the
        shortest and longest caption's length; `texts`, how many; `t2i_r1`, how many found their
        image; `i2t_r1`, of how many the image found one of its own captions; as fractions.
    """
    found = {
        "t2i_r1": (ranking.text_rank <= 1).numpy(),
        "i2t_r1": (ranking.image_rank[ranking.text_to_image] <= 1).numpy(),
    }
    lengths = {"sentences": np.array([len(c) for c in captions]), "tokens": _tokens(captions)}
    return {unit: _groups(values, found) for unit, values in lengths.items()}


def _groups(lengths: np.ndarray, found: dict[str, np.ndarray]) -> list[Group]:
    shares = np.arange(1, GROUPS + 1) / GROUPS
    longest = np.unique(np.quantile(lengths, shares, method="lower"))  # of each group
    place = np.searchsorted(longest, lengths)
    groups = []
    for n in np.unique(place):
        here = place == n
        ends = {"low": lengths[here].min(), "high": lengths[here].max(), "texts": here.sum()}
        recalls = {name: hits[here].mean() for name, hits in found.items()}
        groups.append({name: float(value) for name, value in (ends | recalls).items()})
    return groups


def _tokens(captions: Sequence[Caption]) -> np.ndarray:
    """Tokens of each caption without start and end."""
    tokenizer = load_tokenizer(TOKENIZER)
    counts = []
    for start in range(0, len(captions), CAPTIONS_AT_ONCE):
        texts = [". ".join(caption) for caption in captions[start : start + CAPTIONS_AT_ONCE]]
        ids = tokenizer(texts, MOST_TOKENS)
        counts.append(ids.argmax(dim=1).numpy() - 1)  # the end has the largest id
    return np.concatenate(counts)
