"""Published results beside measured ones: numbers in published.yaml, where they come from in
published_sources.yaml. For the tables of pages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from caft.config import read_yaml

NUMBERS = Path(__file__).parent / "published.yaml"
SOURCES = Path(__file__).parent / "published_sources.yaml"


@dataclass(frozen=True)
class Source:
    """Where rows come from, and how they were measured."""

    source: str
    date: str
    protocol: str
    checked: str  # against what, when the rows were written down


@dataclass(frozen=True)
class Published:
    """What others reached on one benchmark, as fractions."""

    images: int | None  # of the set they were measured on, where known
    models: Mapping[str, Mapping[str, float]]  # model -> measure, as in metrics.json -> value
    sources: Mapping[str, Source]  # by model
    scores: Mapping[str, str]  # model -> kind of score, where it is not the one it is judged by


def published(benchmark: str) -> Published | None:
    """The published results on a benchmark of this name in a configuration."""
    return _by_name().get(_plain(benchmark))


@cache
def _by_name() -> dict[str, Published]:
    found = {}
    places = {
        key: Source(**{name: str(value) for name, value in fields.items()})
        for key, fields in read_yaml(SOURCES).items()
    }
    for name, entry in read_yaml(NUMBERS).items():
        sources = {model: places[entry["sources"][model]] for model in entry["models"]}
        scores = entry.get("scores", {})
        known = Published(entry.get("images"), _fractions(entry["models"]), sources, scores)
        for other in (name, *entry.get("also", ())):
            found[_plain(other)] = known
    return found


def _fractions(models: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    return {
        model: {measure: float(value) / 100 for measure, value in numbers.items()}
        for model, numbers in models.items()
    }


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower())
