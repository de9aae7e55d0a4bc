"""Fills a row's `captions`: the texts of its source, as lists of sentences.
Follows the images of a chunk; filters on captions come after it."""

from __future__ import annotations

from typing import Any

from caft.captions import split_sentences
from pipelines.data.config import CaptionConfig
from pipelines.data.sources.cells import CUT


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
        if (sentences := _sentences(entry, config, row["notes"]))
    ]
    if not row["captions"]:
        row["reason"] = "no_caption"
        row["detail"] = f"no sentence of {config.min_chars} or more characters"


def _sentences(entry: dict[str, Any], config: CaptionConfig, notes: set[str]) -> list[str]:
    if entry["sentences"]:
        return list(entry["texts"])
    sentences: list[str] = []
    left = config.max_chars
    for text in entry["texts"]:
        # Splitting takes time that grows with the text; a sentence that is cut here is left out.
        found = split_sentences(text[: left + 1], config.split_mode, config.min_chars)
        if len(text) > left:
            notes.add(CUT)
            found = found[:-1] if len(found) > 1 else [one[:left] for one in found]
        sentences += found
        left -= sum(map(len, found))
        if left <= 0:
            break
    return sentences
