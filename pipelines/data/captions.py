"""Fills a row's `captions`: the texts of its source, as lists of sentences.
Follows the images of a chunk; filters on captions come after it."""

from __future__ import annotations

from typing import Any

from caft.captions import split_sentences
from pipelines.data.config import CaptionConfig


def split_captions(row: dict[str, Any], config: CaptionConfig) -> None:
    """Set `captions`, a list of {"source", "kind", "sentences"}, from the row's `texts`.

    Texts that are sentences already are kept as they are. A caption without a sentence is left
    out; a row without a caption is rejected as "no_caption". Rejected rows are left alone.
    """
    if row["reason"] is not None:
        return
    row["captions"] = [
        {"source": entry["source"], "kind": entry["kind"], "sentences": sentences}
        for entry in row["texts"]
        if (sentences := _sentences(entry, config))
    ]
    if not row["captions"]:
        row["reason"] = "no_caption"
        row["detail"] = f"no sentence of {config.min_chars} or more characters"


def _sentences(entry: dict[str, Any], config: CaptionConfig) -> list[str]:
    if entry["sentences"]:
        return list(entry["texts"])
    return [
        sentence
        for text in entry["texts"]
        for sentence in split_sentences(text, config.split_mode, config.min_chars)
    ]
