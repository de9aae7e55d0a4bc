"""Runs one function over many items on the cluster, through Ray Data, results as they come.
The steps of a stage call it; what they hand over and get back is JSON."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grpc
import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayError, WorkerCrashedError

from caft.errors import ClusterError
from pipelines.failures import attempt, first_words, one_voice, root_cause, value_of
from pipelines.private import ray_folder, require_token

# Ray Data's own limit is none, with which an item that ends every process would never be given up.
RETRIES = 4
MOST_OF_A_NAME = 200  # characters of an item in a message
ANSWER_WITHIN_S = 15.0


def run_tasks(
    label: str,
    function: Callable[[Any], Any],
    items: Iterable[Any],
    concurrency: int,
    cpus: float = 1.0,
    name: Callable[[Any], str] = str,
) -> Iterator[tuple[Any, Any]]:
    """Yield (item, function(item)) in the order in which items finish.

    Args:
        label: what the cluster's pages call these tasks.
        concurrency: items in work at a time.
        cpus: that one of them reserves.
        name: of an item, in the message of a failure.

    Raises:
        CAFTError: the one that the function raised; an UnexpectedError for any other exception.
        ClusterError: an item's process was lost, more often than Ray starts one again.
    """
    rows = [{"item": json.dumps(item)} for item in items]
    if not rows:
        return

    def call(row: dict[str, str]) -> dict[str, str]:
        item = json.loads(row["item"])
        result = attempt(lambda: function(item), f"{label} {name(item)}"[:MOST_OF_A_NAME])
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
    with one_voice(label):
        try:
            for row in results.iter_rows():
                yield json.loads(row["item"]), value_of(json.loads(row["result"]))
        except RayError as error:
            if isinstance(root_cause(error), WorkerCrashedError | NodeDiedError | OutOfMemoryError):
                raise ClusterError(f"{label}: {_given_up(error)}") from error
            raise


def cluster_cpus() -> int:
    """Logical CPUs of the cluster; starts a local one where there is none."""
    connect()
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _given_up(error: RayError) -> str:
    text = " ".join(str(error).split())
    return f"its process ended {RETRIES + 1} times; see the workers' logs ({text[:200]})"


def connect(worker_environment: dict[str, str] | None = None) -> None:
    """Join the cluster that RAY_ADDRESS names, as it does in a Ray job; without it start a local
    one that ends with this process. Does nothing where Ray runs already.

    Ray's own choice without an address is the last cluster that was started on this machine, even
    if it is gone; the stage would then wait for minutes, and in vain.

    Raises:
        ClusterError: nobody answers there, or a local cluster cannot start.
    """
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {}
    if address == "local":
        options = {"_temp_dir": ray_folder()}
        require_token()
    else:
        _require_answer(address)
    try:
        ray.init(address=address, runtime_env={"env_vars": worker_environment or {}}, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(f"RAY_ADDRESS {address}: {first_words(error)}") from None


def _require_answer(address: str) -> None:
    """Raises ClusterError where nothing at `address` speaks as Ray does; Ray itself would ask for
    minutes, and then end the process."""
    if address == "auto" or os.environ.get("RAY_USE_TLS") == "1":
        return  # Ray looks for it itself, or its certificates are needed to ask
    if address.startswith(("http://", "https://")):
        raise ClusterError(
            f"RAY_ADDRESS {address}: is that of a job server, to which python -m pipelines.submit "
            "speaks; for a stage give HOST:6379, or unset it for a local cluster"
        )
    target = address.removeprefix("ray://")
    with grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(ANSWER_WITHIN_S)
        except grpc.FutureTimeoutError:
            raise ClusterError(
                f"RAY_ADDRESS {address}: no Ray cluster answers within {ANSWER_WITHIN_S:g} s; "
                "start one there, correct it, or unset it for a local cluster"
            ) from None
