"""Reads finished evaluations again: from the stage's output folders, or from MLflow runs.
For comparisons; what an evaluation wrote is all that a page needs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from caft.errors import DataError
from pipelines import storage
from pipelines.config import TrackingConfig
from pipelines.evaluate.report.page import Evaluated
from pipelines.runs import read_artifacts

METRICS, EXAMPLES = "metrics.json", "examples.json"
RUN_ID = re.compile(r"[0-9a-f]{32}")
# What pages read of an evaluation's metrics.json, beside its benchmarks.
KEYS = (
    *("model", "label", "step", "series", "checkpoint", "checkpoint_fingerprint"),
    *("mlflow_run_id", "links", "datasets", "alpha", "score", "benchmarks"),
)


def find_evaluations(name: str, tracking: TrackingConfig) -> list[Evaluated]:
    """The finished evaluations in an output folder, or attached to an MLflow run.

    Args:
        name: an output of the stage, of one checkpoint or of several; or the id of a run.

    Raises:
        DataError: there is no finished evaluation, or one that another program wrote.
        ConfigError: no such run in the experiment.
        StorageError: a file that cannot be read.
    """
    if RUN_ID.fullmatch(name) and not storage.exists(name):
        return _of_run(name, tracking)
    path = storage.usable_path(name, "compare").rstrip("/")
    if storage.exists(storage.join(path, METRICS)):
        return [read_output(path)]
    folders = [storage.join(path, folder) for folder in storage.list_folders(path)]
    found = [f for f in folders if storage.exists(storage.join(f, METRICS))]
    if not found:
        raise DataError(
            f"{path}: no {METRICS} here or in a folder of it, so no finished evaluation; give an "
            "output of the evaluate stage or the id of its MLflow run"
        )
    return [read_output(folder) for folder in found]


def read_output(folder: str) -> Evaluated:
    """The evaluation that was written into a folder.

    Raises:
        DataError: another program wrote its metrics.
        StorageError: a file is missing or cannot be read.
    """
    metrics, examples = (storage.join(folder, name) for name in (METRICS, EXAMPLES))
    return _checked(storage.read_json(metrics), storage.read_json(examples), metrics)


def _of_run(run_id: str, tracking: TrackingConfig) -> list[Evaluated]:
    files = read_artifacts(tracking, run_id, (METRICS, EXAMPLES))
    folders = sorted(path.removesuffix(METRICS) for path in files if path.endswith(METRICS))
    if not folders:
        raise DataError(
            f"MLflow run {run_id}: has no {METRICS}, so it is no finished run of the evaluate stage"
        )
    return [
        _checked(
            json.loads(files[f"{folder}{METRICS}"]),
            json.loads(files.get(f"{folder}{EXAMPLES}", b"{}")),
            f"MLflow run {run_id}, {folder}{METRICS}",
        )
        for folder in folders
    ]


def _checked(results: Mapping[str, Any], examples: Mapping[str, Any], source: str) -> Evaluated:
    missing = [key for key in KEYS if key not in results]
    if missing:
        raise DataError(
            f"{source}: has no '{missing[0]}', so this version did not write it; evaluate "
            "again, into another output"
        )
    return Evaluated(results, examples)
