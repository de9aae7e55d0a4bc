"""Runs one function over many items on the cluster, through Ray Data, results as they come.
The steps of a stage call it; what they hand over and get back is JSON."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayError, WorkerCrashedError

from caft import errors
from caft.errors import CAFTError, ClusterError

# Ray Data's own limit is none, with which an item that ends every process would never be given up.
RETRIES = 4


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
        ClusterError: an item's process was lost, more often than Ray starts one again.
    """
    rows = [{"item": json.dumps(item)} for item in items]
    if not rows:
        return

    def call(row: dict[str, str]) -> dict[str, str]:
        try:
            result = {"value": function(json.loads(row["item"]))}
        except CAFTError as error:  # as a value, or Ray prints its traceback before the one line
            result = {"error": [type(error).__name__, str(error)]}
        return {"item": row["item"], "result": json.dumps(result)}

    call.__name__ = label
    connect()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    with warnings.catch_warnings():  # Ray has no other way yet to name this limit
        warnings.simplefilter("ignore", DeprecationWarning)
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            call,
            compute=ray.data.TaskPoolStrategy(size=min(concurrency, len(rows))),
            num_cpus=cpus,
            max_retries=RETRIES,
        )
    try:
        for row in results.iter_rows():
            result = json.loads(row["result"])
            if "error" in result:
                kind, message = result["error"]
                raise getattr(errors, kind)(message)
            yield json.loads(row["item"]), result["value"]
    except RayError as error:
        raise ClusterError(f"{label}: {_first_words(error)}") from error


def cluster_cpus() -> int:
    """Logical CPUs of the cluster; starts a local one where there is none."""
    connect()
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _first_words(error: RayError) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, WorkerCrashedError | NodeDiedError | OutOfMemoryError):
        return f"its process ended {RETRIES + 1} times; see the workers' logs ({text[:200]})"
    return text[-300:]


def connect(worker_environment: dict[str, str] | None = None) -> None:
    """Join the cluster that RAY_ADDRESS names, as it does in a Ray job; without it start a local
    one that ends with this process. Does nothing where Ray runs already.

    Ray's own choice without an address is the last cluster that was started on this machine, even
    if it is gone; the stage would then wait for minutes, and in vain.
    """
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS") or "local"
        ray.init(address=address, runtime_env={"env_vars": worker_environment or {}})
