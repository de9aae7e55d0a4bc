"""Rows as dictionaries, which every later step of a chunk works on, from the plan's raw rows.
Here cells that spell lists become lists, which takes time, so that chunks do it in parallel."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from pipelines.data.config import SourceConfig
from pipelines.data.sources.cells import DAMAGED, cell_texts

DEFAULT_SPLIT = "train"
TEXT_NAME = "txt"
DETAIL_CHARS, SHOWN_CHARS = 300, 40


def parse_rows(table: pa.Table, source: SourceConfig) -> list[dict[str, Any]]:
    """Rows of RAW_SCHEMA, all of one source, as row dictionaries; see `new_row`."""
    captions = table["captions"].combine_chunks()
    entries = captions.flatten()
    texts = entries.field("text").to_pylist()
    sources, kinds = entries.field("source").to_pylist(), entries.field("kind").to_pylist()
    sizes = captions.value_lengths().to_pylist()
    reasons, details = table["reason"].to_pylist(), table["detail"].to_pylist()
    columns = table["columns"].to_pylist()
    rows = []
    start = 0
    for index, url in enumerate(table["url"].to_pylist()):
        row = new_row(url, source)
        end = start + (sizes[index] or 0)
        row["columns"] = dict(columns[index] or ())
        row["reason"], row["detail"] = reasons[index], details[index] or ""
        cells = zip(sources[start:end], kinds[start:end], texts[start:end], strict=True)
        set_texts(row, cells)
        start = end
        rows.append(row)
    return rows


def new_row(url: str, source: SourceConfig) -> dict[str, Any]:
    """A row without captions and without an image."""
    return {
        "url": url,
        "key": hashlib.sha256(url.encode()).hexdigest()[:32],
        "split": source.split or DEFAULT_SPLIT,
        "source": source.name,
        "texts": [],
        "notes": set(),
        "columns": {},
        "reason": None,
        "detail": "",
        "data": None,
    }


def set_texts(
    row: dict[str, Any], cells: Iterable[tuple[str, str, Any]], complaint: str | None = None
) -> None:
    """Set a row's `cells`, `texts` and `notes`, or its reason if it has no text, or a damaged one.

    Args:
        cells: source and kind of each caption, and what its cell holds: see `cell_texts`.
        complaint: what a cell holds that is no text, if its reader has found it.
    """
    notes: set[str] = set()
    complaints = [complaint] if complaint else []
    seen: set[str] = set()
    row["cells"] = []
    for source, kind, cell in cells:
        row["cells"].append((source, cell))
        said: list[str] = []
        found = cell_texts(cell, notes, said)
        complaints += [f"{source}: {one}" for one in said]
        if source == TEXT_NAME:  # img2dataset writes one caption into .txt and .json
            found = [text for text in found if text not in seen]
        seen.update(found)
        if found:
            row["texts"].append(
                {"source": source, "kind": kind, "texts": found, "sentences": False}
            )
    row["notes"] = notes
    if row["reason"] is not None:
        return
    if DAMAGED in notes or "\ufffd" in row["url"]:
        row["reason"], row["detail"] = "bad_text", _damage(row)
    elif not row["texts"]:
        detail = complaints[0] if complaints else "every caption column is empty"
        row["reason"], row["detail"] = "no_caption", detail[:DETAIL_CHARS]


def _damage(row: dict[str, Any]) -> str:
    texts = [("url", row["url"])]
    texts += [(entry["source"], text) for entry in row["texts"] for text in entry["texts"]]
    name, text = next(pair for pair in texts if "\ufffd" in pair[1])
    at = text.index("\ufffd")
    around = text[max(0, at - SHOWN_CHARS) : at + SHOWN_CHARS]
    return f"{name}: bytes that are not text of its encoding, at character {at + 1}: {around}"
