"""Byte-pair tokenizers: the CLIP vocabulary, or a small one shipped for the demo model.
Between sub-captions and the part-text encoder; the end token is always the largest id."""

from __future__ import annotations

import html
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from caft.config import TextConfig
from caft.errors import ConfigError
from caft.inputs import caption_chunks

ASSET_DIR = Path(__file__).resolve().parent / "assets"
REMEMBERED_WORDS = 2**16  # captions repeat their words: looking one up is faster than splitting it
STRAIGHT_QUOTES = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"'})


class Tokenizer(Protocol):
    """Anything that turns texts into padded ids."""

    vocab_size: int

    def __call__(self, texts: list[str], context_length: int) -> Tensor: ...


class BPETokenizer:
    """A tokenizer.json of the `tokenizers` library whose two last ids are start and end.

    `clip` gives the ids of OpenAI's tokenizer with one exception that is meant: a text that
    spells `<|endoftext|>` or `<|startoftext|>` gets the ids of those letters, since an end token
    in its middle would cut the caption there.
    """

    def __init__(self, path: Path) -> None:
        import tokenizers

        self._encoder = tokenizers.Tokenizer.from_file(str(path))
        self._encoder.no_padding()
        self._encoder.no_truncation()
        self.vocab_size = self._encoder.get_vocab_size()
        # Where a space is nothing but a border, a text's ids are those of its words in a row.
        self._word_by_word = not self._encode(" ")
        self._word_ids = lru_cache(maxsize=REMEMBERED_WORDS)(self._encode)

    def __call__(self, texts: list[str], context_length: int) -> Tensor:
        """Ids (N, T) int64: start, text, end, then zeros up to the longest of the N texts.

        A text longer than `context_length` is cut before its end token, which is kept.
        """
        start, end, room = self.vocab_size - 2, self.vocab_size - 1, context_length - 2
        rows = [[start, *ids[:room], end] for ids in self._ids([clean_text(t) for t in texts])]
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        ids = np.zeros((len(rows), lengths.max(initial=0)), dtype=np.int64)
        ids[np.arange(ids.shape[1]) < lengths[:, None]] = [*chain.from_iterable(rows)]
        return torch.from_numpy(ids)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        if self._word_by_word:
            return [[*chain.from_iterable(map(self._word_ids, t.split(" ")))] for t in texts]
        encodings = self._encoder.encode_batch(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _encode(self, text: str) -> list[int]:
        return self._encoder.encode(text, add_special_tokens=False).ids


@lru_cache
def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer a model configuration names.

    Raises:
        ConfigError: no such tokenizer is shipped.
    """
    return BPETokenizer(tokenizer_file(name))


def tokenizer_file(name: str) -> Path:
    """The tokenizer.json of a tokenizer; raises as `load_tokenizer`."""
    path = ASSET_DIR / f"{name}.json"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in ASSET_DIR.glob("*.json")))
        raise ConfigError(f"text.tokenizer: '{name}' is not shipped; known: {known}")
    return path


def require_vocabulary(text: TextConfig) -> None:
    """Raises ConfigError where the model has no embedding for ids that its tokenizer gives."""
    known = load_tokenizer(text.tokenizer).vocab_size
    if text.vocab_size < known:
        raise ConfigError(
            f"text.vocab_size: {text.vocab_size:,}, but tokenizer '{text.tokenizer}' has "
            f"{known:,} tokens; set vocab_size to that, or name the tokenizer that is meant"
        )


def caption_ids(
    captions: str | Sequence[str | Sequence[str]], text: TextConfig, tokenizer: Tokenizer
) -> Tensor:
    """Ids (B, chunks, T) of B captions, split and joined to chunks as `text` says.

    Raises:
        DataError: as `caft.inputs.caption_chunks`.
    """
    pieces = caption_chunks(captions, text.chunks, text.sentences)
    ids = tokenizer(pieces, text.context_length)
    return ids.view(len(pieces) // text.chunks, text.chunks, ids.shape[-1])


def clean_text(text: str) -> str:
    """CLIP's cleaning: repaired Unicode, HTML entities resolved, single spaces, lower case."""
    plain = text if text.isascii() else text.translate(STRAIGHT_QUOTES)
    if plain.isascii() and plain.isprintable() and "&" not in plain:
        return " ".join(plain.split()).lower()  # which is all that is left to do
    import ftfy  # slow to import, and a model without text to read needs none of it

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()
