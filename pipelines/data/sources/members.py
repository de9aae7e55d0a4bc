"""Captions and other columns that lie beside an image as a .txt and a .json.
What folders of images and WebDataset tars have in common."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pipelines.data.config import SourceConfig
from pipelines.data.sources.columns import caption_kinds
from pipelines.data.sources.texts import clean, clean_texts

TEXT_NAME = "txt"


def read_captions(
    source: SourceConfig, text: bytes | None, fields: dict[str, Any]
) -> list[dict[str, Any]]:
    """Captions as {"source", "kind", "text": [str, ...]}, each text once."""
    cells: dict[str, Any] = dict(fields)
    if text is not None:
        cells[TEXT_NAME] = text.decode("utf-8", "replace")
    captions: list[dict[str, Any]] = []
    seen: set[str] = set()
    for name, kind in caption_kinds(source, cells).items():
        texts = clean_texts(cells[name])
        # img2dataset writes one caption into both files.
        fresh = [item for item in texts if item not in seen]
        seen.update(fresh)
        if fresh:
            captions.append({"source": name.removesuffix("_captions"), "kind": kind, "text": fresh})
    return captions


def read_fields(data: bytes | None) -> dict[str, Any]:
    """The object that a .json holds; empty if it holds none."""
    try:
        fields = json.loads((data or b"").decode("utf-8", "replace"))
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def read_columns(fields: dict[str, Any], extra: Sequence[str]) -> dict[str, str]:
    """Those of the extra columns that are there, as text."""
    return {name: clean(str(fields[name])) for name in extra if fields.get(name) is not None}
