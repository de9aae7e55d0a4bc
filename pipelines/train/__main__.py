"""The train stage: checks everything, starts Ray Train, says where the model is.
Run as `python -m pipelines.train CONFIG [key=value ...]`, most often as a Ray job."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from caft.checkpoint import MANIFEST
from caft.config import ModelConfig, to_yaml
from caft.errors import DataError
from caft.model import CAFT
from caft.superpixels.network import open_sfcn
from caft.tokenizer import require_vocabulary
from pipelines import storage, user_paths
from pipelines.config import stage_main
from pipelines.data.dataset import open_dataset, read_manifest, use_of
from pipelines.run_layout import CONFIG_COPY, FINAL, RESULT, RUN
from pipelines.tracking import About, EventLog, Tracker, send_rest
from pipelines.tracking.about import last_part
from pipelines.train.attempts import train_to_the_end
from pipelines.train.checkpoints.store import CheckpointStore
from pipelines.train.config import TrainConfig
from pipelines.train.deepspeed.config import resolve_deepspeed
from pipelines.train.deepspeed.engine import check_settings
from pipelines.train.final import restore_final
from pipelines.train.held_out import check_best_metric, open_held_out
from pipelines.train.identity import begun, known_run_id, require_same_run, require_same_training
from pipelines.train.ingest import index_row_groups
from pipelines.train.loop import TrainJob
from pipelines.train.plan import EpochPlan, open_subset
from pipelines.train.schedule import check_schedule
from pipelines.train.start import check_fine_tuning, check_start, reading_as, resolve_model
from pipelines.workers import connect

# Ray Train would print what workers print a second time.
WORKER_ENVIRONMENT = {"RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}


def run(config: TrainConfig) -> None:
    """Train until the last step, from the newest whole checkpoint if there is one.

    Raises:
        DataError: the dataset or the held-out set is missing, unfinished, or too small.
        CheckpointError: the output holds checkpoints of another model, or what `start_from` names
            does not serve.
        StorageError: the output has no room for two checkpoints.
        ConfigError: the output holds a run of another configuration, or an unfinished one of a
            version that trains otherwise; the superpixel network has no weights, the tokenizer
            does not fit, the warm-up or the cool-down is longer than the run, checkpoints are kept
            by a metric that is never logged, or deepspeed.file says otherwise.
    """
    config = resolve_deepspeed(config)
    if config.deepspeed.file is not None:
        check_settings(config)
    output = user_paths.usable_path(config.output, "output", folder=True).rstrip("/")
    config = config.model_copy(update={"output": output})
    if config.start_from is not None:
        start = user_paths.usable_path(config.start_from.checkpoint, "start_from.checkpoint")
        update = {"start_from": config.start_from.model_copy(update={"checkpoint": start})}
        config = config.model_copy(update=update)
    model = resolve_model(config)
    if model.image.superpixels.method == "sfcn":
        open_sfcn(model.image.superpixels)  # weights that do not serve are known before Ray starts
    require_vocabulary(model.text)
    dataset = open_dataset(config.dataset)
    model = reading_as(dataset, model)
    final = storage.join(output, FINAL)
    finished = storage.exists(storage.join(output, RESULT))
    if not finished:
        require_same_training(output, finished)
    require_same_run(output, config, model, dataset.fingerprint)
    if finished:
        step = storage.read_json(storage.join(output, RESULT))["step"]
        restore_final(config, step)
        send_rest(config.tracking, output, "FINISHED")
        print(f"train: finished before, at step {step:,}: {final}", flush=True)
        return
    groups = index_row_groups(dataset, config.split)
    subset = open_subset(dataset, config.split, config.subset)
    if subset is not None:
        groups = index_row_groups(dataset, config.split, subset=subset)
    plan = EpochPlan(
        groups,
        config.global_batch,
        config.ingest.lanes,
        config.ingest.window_steps,
        config.seed,
    )
    if plan.steps_per_epoch == 0:
        raise DataError(
            f"{config.dataset}: {plan.rows} rows in split '{config.split}' are fewer than "
            f"global_batch {config.global_batch}; lower it or add data"
        )
    held_out = open_held_out(config)
    total_steps = max(1, round(config.epochs * plan.steps_per_epoch))
    check_schedule(total_steps, config.optimizer)
    check_best_metric(config, model)
    start_from = check_start(config, model, dataset.fingerprint, total_steps)
    check_fine_tuning(config, model)
    user_paths.check_space(output, 2 * _checkpoint_bytes(model, config))
    links = {"data": dataset.manifest.get("mlflow_run_id", "")}
    rows = f"{plan.rows:,} rows of split '{config.split}'"
    about = About(
        "train",
        f"{model.name} {last_part(config.dataset)}",
        f"Trains {model.name} on {rows} of `{config.dataset}`: {total_steps:,} steps of "
        f"{config.global_batch:,} images, {config.epochs:g} epochs.",
        output,
    )
    log, store = EventLog(output, "train"), CheckpointStore(output)
    with Tracker.start(
        config.tracking, about, config, log, links, known_run_id(output), [config.dataset]
    ) as tracker:
        tracker.record_again(store.unsent(store.newest_step()))
        known = begun(model, dataset.fingerprint, tracker.run_id, start_from)
        storage.write_json(storage.join(output, RUN), known)
        storage.write_bytes(storage.join(output, CONFIG_COPY), to_yaml(config).encode())
        used = [use_of(dataset, "training")]
        if held_out is not None and held_out.dataset != config.dataset:
            used.append(use_of(read_manifest(held_out.dataset), "held out"))
        tracker.log_datasets(used)
        tracker.set_tags({"model": model.name, "dataset_fingerprint": dataset.fingerprint})
        print(
            f"train: {model.name} on {plan.rows:,} rows, {total_steps:,} steps of "
            f"{config.global_batch}",
            flush=True,
        )
        connect(WORKER_ENVIRONMENT)
        job = TrainJob(
            config,
            model,
            plan,
            total_steps,
            dataset.fingerprint,
            dataset.manifest.get("config", {}).get("decontamination", {}),
            tracker.run_id,
            held_out,
            subset,
            start_from,
        )
        train_to_the_end(job, store.newest_step)
        manifest = storage.read_json(storage.join(final, MANIFEST))
        tracker.log_artifact(storage.join(final, MANIFEST), "checkpoint")
        tracker.log_model(
            f"{model.name} {last_part(output)}",
            manifest["step"],
            final,
            {
                "model": model.name,
                "dataset": config.dataset,
                "global_batch": config.global_batch,
                "epochs": config.epochs,
                "lr": config.optimizer.lr,
                "seed": config.seed,
            },
        )
        tracker.flush()
        result = {"step": manifest["step"], "metrics": manifest["metrics"]}
        storage.write_json(storage.join(output, RESULT), result)  # last: with it, it is finished
        print(f"train: finished at step {manifest['step']:,}: {final}", flush=True)


def _checkpoint_bytes(model: ModelConfig, config: TrainConfig) -> int:
    """Of one checkpoint: weights, two moments, and their average where it is on."""
    with torch.device("meta"):
        whole = CAFT(model)
    weights = sum(tensor.nbytes for tensor in whole.state_dict().values())
    return weights * (4 if config.average else 3)


def main(argv: Sequence[str]) -> int:
    """Console entry."""
    return stage_main(TrainConfig, run, list(argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
