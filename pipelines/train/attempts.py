"""Trains to the last step over as many worker groups as that takes: failures, nodes that go away,
nodes that come. Between the driver's checks and the loop that each worker runs."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2.api.config import FailureConfig, RunConfig
from ray.train.v2.api.config import ScalingConfig as RayScalingConfig
from ray.train.v2.torch.torch_trainer import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from caft.errors import ClusterError, UnexpectedError
from pipelines.failures import shortened, understood
from pipelines.train.gpu_health import Quarantine
from pipelines.train.loop import TrainJob, train_worker
from pipelines.train.rendezvous import SharedInterface
from pipelines.train.resources import Growth, find_room, room_given_back, worker_resources
from pipelines.train.signal_board import Notice, NoticeBoard

LOOK_EVERY_S = 1.0
SAID = {
    Notice.GROW: "there is room for more workers",
    Notice.NODE_LEAVES: "a node is about to go away",
}


def train_to_the_end(job: TrainJob, newest_step: Callable[[], int]) -> None:
    """Run worker groups one after the other until the last step is done.

    A group that fails is followed by another from the newest checkpoint, `scaling.max_failures`
    times without a newer one in between. A node that goes away or comes costs none of these.

    Args:
        newest_step: the step of the newest checkpoint now, 0 without any.

    Raises:
        CAFTError: what a worker raised as the user's to mend; it is not tried again.
        KeyboardInterrupt: on SIGINT or SIGTERM, after a checkpoint of the step it came at.
    """
    scaling = job.config.scaling
    failures, reached = 0, newest_step()
    quarantine = Quarantine() if scaling.use_gpu else None
    with _stop_signals() as stop:
        while True:
            if quarantine is not None:
                quarantine.update()
            workers = find_room(job.config.worker_counts, scaling)
            try:
                with room_given_back():
                    left = _run_group(job, workers, stop)
            except (WorkerGroupError, ControllerError, RayActorError) as error:
                known = understood(error, "train")
                if not isinstance(known, UnexpectedError | ClusterError):
                    raise known from None
                if stop.asked:
                    raise KeyboardInterrupt from None
                newest = newest_step()
                failures = 1 if newest > reached else failures + 1
                reached = newest
                if failures > scaling.max_failures:
                    raise type(known)(
                        f"the workers failed {failures} times since step {reached:,}: {known}"
                    ) from None
                print(
                    f"train: the workers failed ({shortened(known)}), failure {failures} of "
                    f"{scaling.max_failures} since step {reached:,}; going on from there",
                    flush=True,
                )
                continue
            if left == Notice.NONE:
                return
            if left == Notice.STOP:
                raise KeyboardInterrupt
            print(f"train: {SAID[left]}; going on from step {newest_step():,}", flush=True)


def _run_group(job: TrainJob, workers: int, stop: _Stop) -> Notice:
    """One worker group from its start until it ends; why it left, NONE after the last step."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = NoticeBoard.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    growth = Growth(workers, job.config.worker_counts, job.config.scaling)
    # Ray Train wants a folder to note checkpoints in, of which it is never told.
    scratch = tempfile.mkdtemp(prefix="caft-ray-")
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job, "notices": board},
        torch_config=SharedInterface(),
        scaling_config=RayScalingConfig(
            num_workers=workers,
            use_gpu=job.config.scaling.use_gpu,
            resources_per_worker=worker_resources(job.config.scaling),
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=scratch,
            failure_config=FailureConfig(
                max_failures=0, controller_failure_limit=0, max_preemption_failures=0
            ),
        ),
    )
    stop.training = True
    # On another thread than the main one, Ray Train leaves Ctrl-C to us.
    with ThreadPoolExecutor(1) as pool:
        running: Future[Any] = pool.submit(trainer.fit)
        try:
            while not wait([running], timeout=LOOK_EVERY_S).done:
                if stop.asked:
                    board.post.remote(Notice.STOP)
                elif growth.possible():
                    board.post.remote(Notice.GROW)
            return Notice(running.result().return_value)
        finally:
            del running  # else a failure's traceback and Ray's controller hold each other
            stop.training = False
            growth.close()
            ray.kill(board)
            shutil.rmtree(scratch, ignore_errors=True)


class _Stop:
    """SIGINT and SIGTERM while a run trains. While no workers run, there is nothing to save."""

    def __init__(self) -> None:
        self.asked, self.training = False, False

    def handle(self, number: int, _: object) -> None:
        if not self.training:
            raise KeyboardInterrupt
        if self.asked:  # a second time: the workers do not get the time to save
            print(
                "train: ended at once: what was trained since the last checkpoint is not saved; "
                "run the same command again to continue from it",
                flush=True,
            )
            os._exit(128 + number)
        print("train: stopping; a checkpoint is saved first", flush=True)
        self.asked = True


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals are not ours to take
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, stop.handle) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
