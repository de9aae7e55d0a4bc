"""The Ray cluster that a stage runs on: the one of its job, or a local one of its own.
Every stage starts here; tests bring a cluster themselves."""

from __future__ import annotations

import os

import ray


def connect(worker_environment: dict[str, str] | None = None) -> None:
    """Join the cluster that RAY_ADDRESS names, as it does in a Ray job; without it start a local
    one that ends with this process. Does nothing where Ray runs already.

    Ray's own choice without an address is the last cluster that was started on this machine, even
    if it is gone; the stage would then wait for minutes, and in vain.
    """
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS") or "local"
        ray.init(address=address, runtime_env={"env_vars": worker_environment or {}})
