"""Saves checkpoints beside training: a step waits for a copy into host memory, never for a disk.
Called by the worker's loop; what lies where is store.py's."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from caft.checkpoint import save_weights, write_manifest
from caft.model import CAFT
from pipelines.train.checkpoints.state import Snapshot, take_snapshot
from pipelines.train.checkpoints.store import CheckpointStore, publish
from pipelines.train.config import CheckpointConfig
from pipelines.train.deepspeed.sharding import HostCopies, WeightAverage


class Saver:
    """Writes one checkpoint at a time on a thread of the first worker; the next one waits for it.

    Args:
        info: goes into every manifest, with the step and its metrics.
        step: of the checkpoint that the run begins with, which is not saved again; 0 for none.
        before: called before a checkpoint is written, on the first worker.
        final_weights: of the finished model, from the last ones or their average.
    """

    def __init__(
        self,
        store: CheckpointStore,
        config: CheckpointConfig,
        engine: Any,
        model: CAFT,
        average: WeightAverage | None,
        info: Mapping[str, Any],
        step: int = 0,
        before: Callable[[], None] | None = None,
        final_weights: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = dict,
    ) -> None:
        self._store, self._config = store, config
        self._engine, self._model, self._average = engine, model, average
        self._info, self._step = dict(info), step
        self._before, self._final_weights = before, final_weights
        self._copies = HostCopies()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[float] | None = None
        self._snapshot: Snapshot | None = None
        self._news: dict[str, float] = {}

    def save(self, step: int, metrics: Mapping[str, float]) -> None:
        """Save the run after `step`, unless it was; every worker calls it.

        Raises:
            StorageError: the checkpoint before could not be written.
        """
        if step == self._step:
            return
        started = time.perf_counter()
        self._finish()  # its snapshot lives in the buffers that the next one overwrites
        snapshot = take_snapshot(self._engine, self._model, step, self._copies, self._average)
        self._snapshot, self._step = snapshot, step
        if dist.get_rank() == 0:
            info = {"step": step, **self._info, "metrics": dict(metrics)}
            self._writing = self._pool.submit(self._write, step, snapshot, info)
            self._news["train/checkpoint_blocked_s"] = time.perf_counter() - started

    def close(self, final: str | None = None, metrics: Mapping[str, float] | None = None) -> None:
        """Return when the last checkpoint is whole; every worker calls it.

        Args:
            final: where the finished model goes, which is that of the last checkpoint.

        Raises:
            StorageError: it could not be written.
        """
        self._finish()
        if final is not None:
            snapshot = self._snapshot or take_snapshot(
                self._engine, self._model, self._step, self._copies, self._average
            )
            if dist.get_rank() == 0:
                publish(final, self._final(snapshot, metrics or {}))
        self._pool.shutdown()
        dist.barrier()

    def metrics(self) -> dict[str, float]:
        """On the first worker, after a checkpoint: how many seconds steps waited for it, and how
        many it took to write the one before."""
        news, self._news = self._news, {}
        return news

    def _finish(self) -> None:
        """Wait for the checkpoint that is being written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            self._news["train/checkpoint_write_s"] = writing.result()

    def _write(self, step: int, snapshot: Snapshot, info: dict[str, Any]) -> float:
        started = time.perf_counter()
        if self._before is not None:
            self._before()
        self._store.publish(step, lambda folder: snapshot.write(folder, self._model, info))
        self._store.prune(self._config)
        return time.perf_counter() - started

    def _final(self, snapshot: Snapshot, metrics: Mapping[str, float]) -> Callable[[Path], None]:
        info = {"step": self._step, **self._info, "metrics": dict(metrics)}
        info["averaged"] = bool(snapshot.average)

        def write(folder: Path) -> None:
            save_weights(self._model, folder, self._final_weights(snapshot.final))
            write_manifest(folder, info)

        return write
