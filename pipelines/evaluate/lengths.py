"""R@1 by the length of captions: who reads long ones to their end, and who only short ones.
Read off a ranking that is there anyway; results and report show it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caft.retrieval import Ranking
from caft.tokenizer import load_tokenizer
from pipelines.evaluate.controls import MOST_TOKENS, TOKENIZER, Caption

GROUPS = 6  # of captions, about equally many in each
CAPTIONS_AT_ONCE = 1024  # ids of so many are held in memory

Group = dict[str, float]


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
