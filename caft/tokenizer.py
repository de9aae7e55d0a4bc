"""Byte-pair tokenizers: the CLIP vocabulary, or a small one shipped for the demo model.
Between sub-captions and the part-text encoder; the end token is always the largest id."""

from __future__ import annotations

import html
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from caft.errors import ConfigError

ASSET_DIR = Path(__file__).resolve().parent / "assets"


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

    def __call__(self, texts: list[str], context_length: int) -> Tensor:
        """Ids (N, T) int64: start, text, end, then zeros up to the longest of the N texts.

        A text longer than `context_length` is cut before its end token, which is kept.
        """
        cleaned = [clean_text(text) for text in texts]
        start, end = self.vocab_size - 2, self.vocab_size - 1
        rows = [
            [start, *encoding.ids[: context_length - 2], end]
            for encoding in self._encoder.encode_batch(cleaned, add_special_tokens=False)
        ]
        ids = torch.zeros(len(rows), max(map(len, rows), default=0), dtype=torch.long)
        for row, values in zip(ids, rows, strict=True):
            row[: len(values)] = torch.tensor(values)
        return ids


@lru_cache
def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer a model configuration names.

    Raises:
        ConfigError: no such tokenizer is shipped.
    """
    path = ASSET_DIR / f"{name}.json"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in ASSET_DIR.glob("*.json")))
        raise ConfigError(f"text.tokenizer: '{name}' is not shipped; known: {known}")
    return BPETokenizer(path)


def clean_text(text: str) -> str:
    """CLIP's cleaning: repaired Unicode, HTML entities resolved, single spaces, lower case."""
    import ftfy  # slow to import, and a model without text to read needs none of it

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()
