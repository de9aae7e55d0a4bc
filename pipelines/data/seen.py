"""What a chunk sees of its rows beside the rows themselves: health of texts, a sample, its work.
Chunks put it into their receipts; here it is added up for the manifest and the page."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from pipelines.data.plan import Plan

SCRIPTS = {
    "Latin": "A-Za-z\u00aa-\u024f\u1e00-\u1eff",
    "Greek": "\u0370-\u03ff",
    "Cyrillic": "\u0400-\u052f",
    "Hebrew": "\u0590-\u05ff",
    "Arabic": "\u0600-\u06ff\u0750-\u077f",
    "Devanagari": "\u0900-\u097f",
    "Thai": "\u0e00-\u0e7f",
    "Kana": "\u3040-\u30ff",
    "Hangul": "\uac00-\ud7af\u1100-\u11ff",
    "Han": "\u3400-\u4dbf\u4e00-\u9fff",
}
PATTERNS = {name: re.compile(f"[{letters}]") for name, letters in SCRIPTS.items()}
LOOKED_AT = 200  # characters of a text whose script is told
SHOWN = 600  # of a sample's cell


class Seen:
    """Counts over the rows of one chunk."""

    def __init__(self) -> None:
        self._notes: Counter[str] = Counter()
        self._captions: Counter[str] = Counter()
        self._scripts: Counter[str] = Counter()
        self._lengths: Counter[str] = Counter()  # texts by the power of two above their characters
        self._fetched = 0
        self._sample: dict[str, Any] | None = None
        self._started = time.time()

    def fetched(self, row: dict[str, Any]) -> None:
        """Take note of a row's image as it came."""
        self._fetched += len(row.get("data") or b"")

    def add(self, row: dict[str, Any]) -> None:
        """Take note of a row that is kept or rejected."""
        self._notes.update(row["notes"])
        self._captions.update({entry["source"] for entry in row["texts"]})
        for entry in row["texts"]:
            for text in entry["texts"]:
                self._lengths[str(1 << max(len(text) - 1, 0).bit_length())] += 1
        if row["texts"]:
            self._scripts[script_of(row["texts"][0]["texts"][0])] += 1
        if self._sample is None and row["reason"] is None:
            self._sample = _sample(row)

    def receipt(self) -> dict[str, Any]:
        return {
            "notes": dict(self._notes),
            "captions": dict(self._captions),
            "scripts": dict(self._scripts),
            "lengths": dict(self._lengths),
            "fetched_bytes": self._fetched,
            "sample": self._sample,
            "started": self._started,
            "ended": time.time(),
        }


def script_of(text: str) -> str:
    """The script that most letters at a text's start are of; Japanese is Kana."""
    start = text[:LOOKED_AT]
    if start.isascii():
        return "Latin" if any(map(str.isalpha, start)) else "no letters"
    counts = {name: len(pattern.findall(start)) for name, pattern in PATTERNS.items()}
    if counts["Kana"]:
        return "Kana"
    name = max(counts, key=lambda name: counts[name])
    if counts[name]:
        return name
    return "another" if any(map(str.isalpha, start)) else "no letters"


def texts_of(source: int, plan: Plan, receipts: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    """What was seen of a source's texts: rows that hold each caption column, that needed repair,
    by script; texts by length; columns and files that are left out, with their rows where they are
    counted; one kept row beside what its cells held; what became of captions that are joined."""
    mine = [receipts[chunk.number] for chunk in plan.chunks if chunk.source == source]
    left_out: dict[str, int | None] = dict(plan.left_out[source]) if plan.left_out else {}
    for receipt in mine:
        for name, rows in receipt.get("left_out", {}).items():
            known = left_out.get(name)
            left_out[name] = rows if known is None else known + (rows or 0)
    lengths = _total(receipt.get("lengths", {}) for receipt in mine)
    texts = {
        "captions": _total(receipt.get("captions", {}) for receipt in mine),
        "notes": _total(receipt.get("notes", {}) for receipt in mine),
        "scripts": _total(receipt.get("scripts", {}) for receipt in mine),
        "lengths": dict(sorted(lengths.items(), key=lambda item: int(item[0]))),
        "left_out": left_out,
        "sample": next((r["sample"] for r in mine if r.get("sample")), None),
    }
    return texts | ({"captions_from": plan.joined[source]} if source in plan.joined else {})


def work_of(source: int, plan: Plan, receipts: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    """What a source took: `rows` and `bytes` that were fetched, `elapsed_s` from its first chunk's
    start to its last one's end, `task_s` of all its chunks together."""
    mine = [receipts[chunk.number] for chunk in plan.chunks if chunk.source == source]
    timed = [receipt for receipt in mine if "ended" in receipt]
    if not timed:
        return {}
    first, last = min(r["started"] for r in timed), max(r["ended"] for r in timed)
    return {
        "rows": sum(receipt["input_rows"] for receipt in timed),
        "fetched_bytes": sum(receipt["fetched_bytes"] for receipt in timed),
        "elapsed_s": round(last - first, 1),
        "task_s": round(sum(r["ended"] - r["started"] for r in timed), 1),
    }


def _total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for some in counts:
        total.update(some)
    return dict(total.most_common())


def _sample(row: dict[str, Any]) -> dict[str, Any]:
    """A kept row's captions beside its cells; a dataset's sentences were cells of another one."""
    cells = [[source, _shown(cell)] for source, cell in row.get("cells", ())]
    captions = [[entry["source"], entry["sentences"]] for entry in row["captions"]]
    return {"url": row["url"], "cells": cells, "captions": captions}


def _shown(cell: Any) -> str:
    if isinstance(cell, list) and len(cell) == 1:  # as readers of lists hand over a text
        cell = cell[0]
    text = cell if isinstance(cell, str) else repr(cell)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
