"""Room for workers on the cluster: how many fit now, waiting for them, and when more would fit.
Before every worker group; the questions are placement groups, so an autoscaler hears them too."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray import PlacementGroupID
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup

from caft.errors import ClusterError
from pipelines.train.config import ScalingConfig

SETTLE_S = 10.0  # a group that has just ended gives its resources back in this time
SOON_S = 2.0
SAY_AGAIN_S = 60.0
LOOK_S = 0.1


def find_room(counts: Sequence[int], scaling: ScalingConfig) -> int:
    """The most workers, of the ascending `counts`, that the cluster has room for; waits for the
    fewest, `scaling.wait_s` at most.

    Raises:
        ClusterError: not even those came.
    """
    wait_s = SETTLE_S
    for count in reversed(counts):
        with _asked(_bundles(count, scaling) + _for_decoding()) as group:
            if group.wait(wait_s):
                return count
        wait_s = SOON_S
    fewest = counts[0]
    ends = None if scaling.wait_s is None else time.monotonic() + scaling.wait_s
    with _asked(_bundles(fewest, scaling) + _for_decoding()) as group:
        while ends is None or time.monotonic() < ends:
            print(f"train: waiting for room: {_shortage(fewest, scaling)}", flush=True)
            left = SAY_AGAIN_S if ends is None else min(SAY_AGAIN_S, ends - time.monotonic())
            if group.wait(max(left, 1.0)):
                return fewest
    raise ClusterError(
        f"scaling: {_shortage(fewest, scaling)}; lower scaling.num_workers or "
        "scaling.cpus_per_worker, add nodes (start Ray with more --num-cpus), or wait longer with "
        "scaling.wait_s"
    )


class Growth:
    """Watches for room for the next larger of `counts` beside `workers` that run now.

    The request is opened `scaling.grow_every_s` after these have started, and stays open, which is
    what makes an autoscaler bring nodes. It asks for a CPU to decode images too: without, it would
    be given the one that the workers' own images are decoded on, and they would wait for ever.
    """

    def __init__(self, workers: int, counts: Sequence[int], scaling: ScalingConfig) -> None:
        more = next((count - workers for count in counts if count > workers), 0)
        self._bundles = _bundles(more, scaling) + _for_decoding() if more else []
        self._opens = time.monotonic() + scaling.grow_every_s
        self._group: Any = None

    def possible(self) -> bool:
        """Whether more workers would fit now. What was found for them is given back at once: the
        workers that run need it until they have left."""
        if not self._bundles or time.monotonic() < self._opens:
            return False
        if self._group is None:
            self._group = placement_group(self._bundles, strategy="PACK")
        if not self._group.wait(LOOK_S):
            return False
        self.close()
        return True

    def close(self) -> None:
        """Take the request back."""
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None


@contextmanager
def room_given_back() -> Iterator[None]:
    """Take back what this job reserved within the block and left reserved. Ray Train leaves the
    room of workers that failed to start, and Ray keeps what an actor reserved until its job ends.
    """
    before = _reserved()
    try:
        yield
    finally:
        for group in _reserved() - before:
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(group)))


def _reserved() -> set[str]:
    """Ids of this job's placement groups, which end with the job's."""
    job = ray.get_runtime_context().get_job_id()
    groups = placement_group_table().items()
    return {name for name, entry in groups if name.endswith(job) and entry["state"] != "REMOVED"}


@contextmanager
def _asked(bundles: list[dict[str, float]]) -> Iterator[Any]:
    group = placement_group(bundles, strategy="PACK")
    try:
        yield group
    finally:
        remove_placement_group(group)


def worker_resources(scaling: ScalingConfig) -> dict[str, float]:
    """What one worker holds while it runs."""
    gpus = {"GPU": 1.0} if scaling.use_gpu else {}
    return {"CPU": scaling.cpus_per_worker} | gpus


def _bundles(workers: int, scaling: ScalingConfig) -> list[dict[str, float]]:
    return [worker_resources(scaling)] * workers


def _for_decoding() -> list[dict[str, float]]:
    """Workers hold their CPUs for the whole run; without one more, nothing could decode images."""
    return [{"CPU": 1.0}]


def _shortage(workers: int, scaling: ScalingConfig) -> str:
    gpu = " and a GPU" if scaling.use_gpu else ""
    have, free = ray.cluster_resources(), ray.available_resources()
    found = ", ".join(
        f"{have.get(name, 0):g} {name}s of which {free.get(name, 0):g} are free"
        for name in worker_resources(scaling)
    )
    return (
        f"{workers} workers of {scaling.cpus_per_worker:g} CPUs{gpu} and one CPU to decode images "
        f"do not fit; the cluster has {found}"
    )
