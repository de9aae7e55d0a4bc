"""Rows as dictionaries, which every later step of a chunk works on, from the plan's raw rows.
Here cells that spell lists become lists, which takes time, so that chunks do it in parallel."""

from __future__ import annotations

import ast
import hashlib
import json
from typing import Any

import pyarrow as pa

from pipelines.data.config import SourceConfig
from pipelines.data.sources.raw import clean_texts

DEFAULT_SPLIT = "train"


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
        for entry in range(start, end):
            found = _texts(texts[entry])
            if found:
                row["texts"].append(
                    {
                        "source": sources[entry],
                        "kind": kinds[entry],
                        "texts": found,
                        "sentences": False,
                    }
                )
        start = end
        row["columns"] = dict(columns[index] or ())
        row["reason"], row["detail"] = reasons[index], details[index] or ""
        if row["reason"] is None and not row["texts"]:
            row["reason"], row["detail"] = "no_caption", "every caption column is empty"
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
        "columns": {},
        "reason": None,
        "detail": "",
        "data": None,
    }


def _texts(cell: list[Any] | None) -> list[str]:
    """A cell as texts; a single text may spell a list of them."""
    values = cell or []
    if len(values) == 1 and values[0]:
        spelled = spelled_list(values[0])
        values = values if spelled is None else spelled
    return clean_texts(values)


def spelled_list(cell: str) -> list[Any] | None:
    """The list that a cell spells in JSON or Python, or None for ordinary text."""
    if not (cell.lstrip().startswith("[") and cell.rstrip().endswith("]")):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(cell.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return value if isinstance(value, list) else None
    return None
