"""What each Ray Train worker runs: batches in, DeepSpeed steps, metrics and checkpoints out.
The loop alone: a step is in step.py, DeepSpeed in engine.py, what a run saves in saver.py."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist

from caft.config import ModelConfig
from caft.fine_tuning import freeze_
from caft.model import create_model
from pipelines import storage
from pipelines.behaviours import numbers
from pipelines.failures import one_voice
from pipelines.run_layout import FINAL
from pipelines.tracking import EventLog, Tracker
from pipelines.train.checkpoints.store import CheckpointStore
from pipelines.train.config import TrainConfig
from pipelines.train.deepspeed.engine import start_engine
from pipelines.train.distributed import TrainingModel
from pipelines.train.evaluations import Evaluations
from pipelines.train.gpu import network_problem, require_gpu
from pipelines.train.gpu_health import watch_xids
from pipelines.train.held_out import HeldOutSet
from pipelines.train.identity import BEHAVIOURS, recipe
from pipelines.train.ingest import Loader, iter_batches
from pipelines.train.inputs import Sender, sent_ahead
from pipelines.train.log import RunLog
from pipelines.train.plan import EpochPlan, Subset
from pipelines.train.profiling import Profiler
from pipelines.train.schedule import learning_rate
from pipelines.train.signal_board import Notice
from pipelines.train.signals import Notices
from pipelines.train.start import final_weights, find_start, load_start
from pipelines.train.telemetry import Telemetry, losses_of


@dataclass(frozen=True)
class TrainJob:
    """What the driver resolved and every worker needs."""

    config: TrainConfig
    model: ModelConfig
    plan: EpochPlan
    total_steps: int
    dataset_fingerprint: str
    decontamination: Mapping[str, Any]  # of the dataset's configuration
    run_id: str
    held_out: HeldOutSet | None = None
    subset: Subset | None = None
    start: Mapping[str, Any] | None = None  # what `check_start` found

    @property
    def name(self) -> str:
        """Of the run: its output's last part."""
        return self.config.output.rstrip("/").rsplit("/", 1)[-1]

    @property
    def manifest(self) -> dict[str, Any]:
        return {
            "dataset": self.config.dataset,
            "dataset_fingerprint": self.dataset_fingerprint,
            "decontamination": dict(self.decontamination),
            "recipe": recipe(self.config, self.model, self.dataset_fingerprint),
            "mlflow_run_id": self.run_id,
            "global_batch": self.config.global_batch,
            "behaviours": numbers(BEHAVIOURS),
            **({"start": dict(self.start)} if self.start else {}),
        }


@one_voice("train worker")
def train_worker(settings: dict[str, Any]) -> int:
    """The Ray Train worker function, of a `job` and a board of `notices`; returns the notice that
    it left for, 0 after the last step."""
    job: TrainJob = settings["job"]
    config = job.config
    if config.scaling.use_gpu:
        require_gpu()
        watch_xids(int(ray.get_gpu_ids()[0]))
        here = ray.train.get_context().get_local_world_size()
        problem = network_problem(dist.get_world_size(), here)
        if problem is not None and dist.get_rank() == 0:
            print(f"train: {problem}", flush=True)
    else:
        os.environ["DS_ACCELERATOR"] = "cpu"
    # DeepSpeed reads the environment when it is imported.
    from pipelines.train.checkpoints.saver import Saver
    from pipelines.train.checkpoints.state import restore_state, saved_average
    from pipelines.train.deepspeed.sharding import WeightAverage, whole_weights
    from pipelines.train.guard import Guard
    from pipelines.train.step import apply_gradients, compute_gradients

    if config.scaling.threads_per_worker is not None:
        torch.set_num_threads(config.scaling.threads_per_worker)
    torch.manual_seed(config.seed)
    model = create_model(job.model)
    store = CheckpointStore(config.output)
    start = _from_first_worker(lambda: find_start(store, config.start_from, job.model))
    step, average_before = 0, None
    with start.opened() as checkpoint:
        if checkpoint is not None:
            load_start(model, checkpoint)
        if config.fine_tune is not None:
            freeze_(model, config.fine_tune.freeze)
        model.recompute_activations(config.scaling.recompute_activations)
        model.low_residuals(config.deepspeed.residuals == "as_products")
        trained = TrainingModel(
            model, config.block_size, config.scaling.compile, config.batch_norm_block
        )
        engine = start_engine(trained, config)
        if checkpoint is not None and start.state:
            step = restore_state(checkpoint, engine, model)
            average_before = saved_average(checkpoint)
    average = WeightAverage(model, config.average, average_before) if config.average else None
    device = torch.device(engine.device)
    rank, workers = dist.get_rank(), dist.get_world_size()

    telemetry = Telemetry(config, trained, job.plan.steps_per_epoch, device)
    log: RunLog | None = None
    evaluations: Evaluations | None = None
    if rank == 0:
        log = RunLog(config, job.name, job.total_steps, done=step)
        log.describe(workers, telemetry.peak)
        if config.evaluation is not None and job.held_out is not None:
            evaluations = Evaluations(
                config.evaluation,
                job.held_out,
                job.model,
                config.output,
                log.tracker,
                busy_cpus=workers * config.scaling.cpus_per_worker + 1,  # one to decode
            )
            store.scores = evaluations.scores

    def evaluate() -> None:
        """Have the weights of this step scored, unless they were; every worker calls it."""
        if config.evaluation is None or step == 0:
            return
        if step % config.evaluation.every_steps and step < job.total_steps:
            return
        if _from_first_worker(lambda: evaluations is not None and not evaluations.knows(step)):
            weights = whole_weights(model)
            if evaluations is not None:
                evaluations.submit(step, weights)

    evaluate()  # a group that ended may have saved this step and not scored it
    loader = Loader(
        config.dataset, config.split, job.model, config.ingest, job.subset, job.dataset_fingerprint
    )
    on_host = iter_batches(job.plan, loader, rank, workers, step, job.total_steps)
    sender = Sender(model, config, device)
    if first := list(itertools.islice(on_host, 1)):
        sender.prepare(first[0])
    batches = telemetry.watch(sent_ahead(itertools.chain(first, on_host), sender, device))
    notices = Notices(settings["notices"], device, config.output)
    guard = Guard(config, engine, trained, step)
    profiler = Profiler(
        config.profile,
        config.output,
        rank,
        device,
        lambda: Tracker(EventLog(config.output, "train")),
    )
    # A run that goes on from a checkpoint logs no step before it again.
    before = log.tracker.flush if log is not None else None
    published = final_weights(config) if rank == 0 else dict
    saver = Saver(
        store, config.checkpoint, engine, model, average, job.manifest, step, before, published
    )
    notice = Notice.NONE
    metrics: dict[str, float] = {}
    while step < job.total_steps and notice == Notice.NONE:
        profiler.before_step(step + 1, notices.profile_asked)
        batch = next(batches)
        loss = compute_gradients(engine, trained, batch, step, config)
        lr = learning_rate(step, job.total_steps, config.optimizer)
        skipped = apply_gradients(engine, trained, lr)
        telemetry.add(loss, engine.get_global_grad_norm(), skipped)
        step += 1
        if average is not None:
            average.update(step)
        guard.watch(step, batch.host, loss, skipped)
        notice = notices.agree()
        if step % config.log_every_steps == 0 or step == job.total_steps:
            metrics = telemetry.take(step, lr) | guard.metrics() | saver.metrics()
            if log is not None:
                log.log(metrics, step)
        if log is not None:
            log.step_done(metrics)
        evaluate()
        if config.checkpoint.due(step) or step == job.total_steps or notice:
            guard.settle()
            saver.save(step, losses_of(metrics))
    profiler.close()
    notices.close()
    finished = step == job.total_steps
    final = storage.join(config.output, FINAL) if finished else None
    saver.close(final, losses_of(metrics))
    if evaluations is not None:
        evaluations.close(wait=finished)
    if log is not None:
        log.close()
    return int(Notice.NONE if finished else notice)


def _from_first_worker(decide: Any) -> Any:
    """Run `decide` on the first worker alone and give every worker its result."""
    result = [decide() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(result, src=0)
    return result[0]
