"""How a benchmark is measured, and whether a model may have seen its images in training.
Stored with the numbers in metrics.json: only numbers of one protocol compare."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from caft.errors import CAFTError
from pipelines.behaviours import BEHAVIOURS
from pipelines.data.dataset import read_manifest
from pipelines.evaluate.adapters import Adapter
from pipelines.evaluate.benchmark import Benchmark
from pipelines.evaluate.config import AnyBenchmarkConfig
from pipelines.evaluate.embed import pictures
from pipelines.evaluate.items import PIXELS, REGIONS

AS_IT_IS = "as written"  # captions that are not split


def protocol(adapter: Adapter, benchmark: Benchmark, config: AnyBenchmarkConfig) -> dict[str, Any]:
    """What decides a benchmark's numbers beside its data: `version` of the measures, `pictures`,
    and where there are such, `sentences` (the splitter), `threshold`, `precision_50`, `templates`.
    """
    found: dict[str, Any] = {
        "version": BEHAVIOURS["measures"].number,
        "pictures": pictures(adapter, benchmark),
    }
    if benchmark.captions:
        own = adapter.sentences
        found["sentences"] = AS_IT_IS if own is None else benchmark.rule or own
    items = benchmark.measure.items if benchmark.measure else None
    if items == REGIONS:
        found |= {"threshold": "midpoint of the heat map", "precision_50": "IoU of at least 0.5"}
    if benchmark.classes or items == PIXELS:
        found["templates"] = list(getattr(config, "templates", ()))
    return found


def seen_in_training(training: Mapping[str, Any], benchmark: Benchmark) -> dict[str, Any]:
    """Whether near-duplicates of a benchmark's images were removed from what a model was trained
    on, as the manifests tell.

    Returns:
        `checked`: true, false, or None where nothing is known; `how`: the same in words. Of a model
        that was fine-tuned, the training of its start counts too.
    """
    start = training.get("start")
    if start:
        own = seen_in_training({**training, "start": None}, benchmark)
        before = seen_in_training(start, benchmark)
        both = (own["checked"], before["checked"])
        checked = True if all(both) else False if False in both else None
        how = f"{own['how']}; before fine-tuning: {before['how']}"
        return _answer(checked, how)
    if not training.get("dataset"):
        return _answer(None, "unknown: no manifest says what the model was trained on")
    of_data = benchmark.dataset
    if of_data and of_data.fingerprint == training.get("dataset_fingerprint"):
        return _answer(True, "held out of the training dataset itself, as another split of it")
    asked = training.get("decontamination")
    if asked is None:
        asked = _of_dataset(training)
    if asked is None:
        return _answer(None, f"unknown: {training['dataset']} can no longer be asked")
    sets = asked.get("sets", [])
    for known in sets:
        same_place = known["path"].rstrip("/") == benchmark.rows.place.rstrip("/")
        if same_place or _plain(known["name"]) == _plain(benchmark.name):
            return _answer(
                True,
                f"near-duplicates of {known['name']} ({known['path']}) up to {asked['distance']} "
                "bits of their hashes were removed from the training data",
            )
    others = ", ".join(known["name"] for known in sets)
    against = f"against {others} alone" if sets else "against no benchmark"
    return _answer(False, f"not checked: the training data were checked {against}")


def _of_dataset(training: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What the training dataset's own manifest says; checkpoints did not always say it."""
    try:
        dataset = read_manifest(training["dataset"])
    except CAFTError:
        return None
    if dataset.fingerprint != training.get("dataset_fingerprint"):
        return None
    found = dataset.manifest.get("config", {}).get("decontamination")
    return None if found is None else dict(found)


def _answer(checked: bool | None, how: str) -> dict[str, Any]:
    return {"checked": checked, "how": how}


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()
