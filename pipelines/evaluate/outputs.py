"""Reads finished evaluations again: from the stage's output folders, or from MLflow runs.
For comparisons; what an evaluation wrote is all that a page needs."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from caft.errors import DataError
from pipelines import storage, user_paths
from pipelines.config import TrackingConfig
from pipelines.evaluate.items import TABLES, Tables
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
    path = user_paths.usable_path(name, "compare").rstrip("/")
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
    there = set(storage.list_files(folder))
    results = storage.read_json(metrics)
    files = {
        name: storage.read_bytes(storage.join(folder, name))
        for name in _item_names(results)
        if name in there
    }
    return _checked(results, storage.read_json(examples), metrics, files)


def item_files(benchmark: str, items: Tables) -> dict[str, bytes]:
    """A benchmark's tables as Parquet files, by name."""
    return {_item_name(benchmark, name): _parquet(table) for name, table in items.items()}


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _item_name(benchmark: str, table: str) -> str:
    return f"items-{benchmark}-{table}.parquet"


def _item_names(results: Mapping[str, Any]) -> list[str]:
    """Files that an evaluation may have, by its metrics."""
    return [_item_name(b, table) for b in results.get("benchmarks", ()) for table in TABLES]


def _of_run(run_id: str, tracking: TrackingConfig) -> list[Evaluated]:
    files = read_artifacts(tracking, run_id, (METRICS, EXAMPLES))
    folders = sorted(path.removesuffix(METRICS) for path in files if path.endswith(METRICS))
    if not folders:
        raise DataError(
            f"MLflow run {run_id}: has no {METRICS}, so it is no finished run of the evaluate stage"
        )
    known = {folder: json.loads(files[f"{folder}{METRICS}"]) for folder in folders}
    names = {name for results in known.values() for name in _item_names(results)}
    items = read_artifacts(tracking, run_id, names)
    return [
        _checked(
            results,
            json.loads(files.get(f"{folder}{EXAMPLES}", b"{}")),
            f"MLflow run {run_id}, {folder}{METRICS}",
            {name: items[path] for name in names if (path := f"{folder}{name}") in items},
        )
        for folder, results in known.items()
    ]


def _checked(
    results: Mapping[str, Any],
    examples: Mapping[str, Any],
    source: str,
    files: Mapping[str, bytes],
) -> Evaluated:
    missing = [key for key in KEYS if key not in results]
    if missing:
        raise DataError(
            f"{source}: has no '{missing[0]}', so this version did not write it; evaluate "
            "again, into another output"
        )
    items = {
        benchmark: {
            table: pq.read_table(io.BytesIO(files[name]))
            for table in TABLES
            if (name := _item_name(benchmark, table)) in files
        }
        for benchmark in results["benchmarks"]
    }
    return Evaluated(results, examples, items)
