"""Runs one function over many items on the cluster, through Ray Data, results as they come.
The steps of a stage call it; what they hand over and get back is JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray
from ray.exceptions import RayError

from caft.errors import ClusterError

MAX_RETRIES = 3  # of an item whose worker process or node is lost


def run_tasks(
    label: str,
    function: Callable[[Any], Any],
    items: Iterable[Any],
    concurrency: int,
    cpus: float = 1.0,
) -> Iterator[tuple[Any, Any]]:
    """Yield (item, function(item)) in the order in which items finish.

    Args:
        label: what the cluster's pages call these tasks.
        concurrency: items in work at a time.
        cpus: that one of them reserves.

    Raises:
        CAFTError: the one that the function raised.
        ClusterError: an item's process was lost again and again.
    """
    rows = [{"item": json.dumps(item)} for item in items]
    if not rows:
        return

    def call(row: dict[str, str]) -> dict[str, str]:
        return {"item": row["item"], "result": json.dumps(function(json.loads(row["item"])))}

    call.__name__ = label
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # or a CAFTError ends as text in a traceback
    results = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        call,
        compute=ray.data.TaskPoolStrategy(size=concurrency),
        num_cpus=cpus,
        max_retries=MAX_RETRIES,
    )
    try:
        for row in results.iter_rows():
            yield json.loads(row["item"]), json.loads(row["result"])
    except RayError as error:
        raise ClusterError(f"{label}: {' '.join(str(error).split())[-300:]}") from error


def cluster_cpus() -> int:
    """Logical CPUs of the cluster; starts a local one where there is none."""
    if not ray.is_initialized():
        ray.init()
    return max(1, int(ray.cluster_resources().get("CPU", 1)))
