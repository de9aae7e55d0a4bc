"""Whether a training's output holds the run that is asked for: its settings, model and dataset.
Asked by the train stage before it continues, and by a sweep of every run that it builds on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from caft.checkpoint import CONFIG, MANIFEST, stored_config
from caft.config import ModelConfig, validate
from caft.documents import parse_yaml
from caft.errors import ConfigError
from caft.old_keys import completed
from pipelines import storage
from pipelines.behaviours import numbers
from pipelines.identity import (
    first_difference,
    require_same,
    require_same_behaviour,
    require_same_config,
)
from pipelines.run_layout import CONFIG_COPY, FINAL, RESULT, RUN
from pipelines.train.checkpoints.store import CheckpointStore, model_difference
from pipelines.train.config import TrainConfig

AFTER_A_STEP: tuple[str, ...] = (
    "caption_sampling",
    "negatives",
)  # behaviours that decide what is learned
BEHAVIOURS = (*AFTER_A_STEP, "initial_values")  # and those that are in a checkpoint's weights
# What may differ when a run is resumed: it changes the speed, not the result.
FREE_FIELDS: dict[str, Any] = {
    **dict.fromkeys(("tracking", "progress_every_s", "scaling", "checkpoint"), True),
    **dict.fromkeys(("log_every_steps", "evaluation", "guard", "profile"), True),
    **dict.fromkeys(("model", "output", "dataset"), True),  # what lies there counts, not where
    "ingest": {"cache"},
    "deepspeed": {"zero_stage", "offload_optimizer", "offload_parameters", "file"},
}
HOLDS = "a training"


def begun(
    model: ModelConfig,
    dataset_fingerprint: str,
    run_id: str,
    start: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a run's output says of itself from its first second on, in run.json.

    Args:
        start: what `check_start` found; None without `start_from`.
    """
    return {
        "run_id": run_id,
        "model": model.model_dump(mode="json"),
        "dataset_fingerprint": dataset_fingerprint,
        "start": start,
        "behaviours": numbers(BEHAVIOURS),
    }


def recipe(config: TrainConfig, model: ModelConfig, dataset_fingerprint: str) -> str:
    """Digest of all that decides a run but its seed: runs of one recipe differ by chance alone."""
    settings = config.model_dump_json(exclude={**FREE_FIELDS, "seed": True})
    parts = (settings, model.model_dump_json(), dataset_fingerprint, str(numbers(BEHAVIOURS)))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def require_same_run(
    output: str, config: TrainConfig, model: ModelConfig, dataset_fingerprint: str
) -> None:
    """Refuse an output of another run; one that is empty holds none.

    Raises:
        ConfigError: naming the first key that differs, its old and its new value.
    """
    copy = storage.join(output, CONFIG_COPY)
    if not storage.exists(copy):
        return
    require_same_config(output, HOLDS, copy, config, FREE_FIELDS)
    known = _inputs(output)
    if "model" in known:
        found = model_difference(known["model"], model)
        named = (f"model.{found[0]}", *found[1:]) if found is not None else None
        require_same(output, HOLDS, named)
    if "dataset_fingerprint" in known:
        then = {"dataset": known["dataset_fingerprint"]}
        found = first_difference(then, {"dataset": dataset_fingerprint})
        fix = "give the dataset that it was trained on, or choose another output"
        require_same(output, HOLDS, found, fix)


def require_same_training(output: str, finished: bool) -> None:
    """Continue nothing that a version began which trains otherwise, and mix nothing with it.

    Args:
        finished: the run has all its steps, so that all behaviours count, as they do for what was
            not saved yet.

    Raises:
        ConfigError: naming the behaviour.
    """
    run, store = storage.join(output, RUN), CheckpointStore(output)
    if not storage.exists(run):
        return
    step = 0 if finished else store.newest_step()
    known = store.manifest(step) if step else storage.read_json(run)
    holds = HOLDS if finished else "an unfinished training"
    matters = AFTER_A_STEP if step else BEHAVIOURS
    require_same_behaviour(output, holds, known.get("behaviours", {}), matters)


def begun_model(output: str) -> ModelConfig | None:
    """The model that the run in `output` was begun with; None where none was begun."""
    return _inputs(output).get("model") if storage.exists(storage.join(output, RUN)) else None


def known_run_id(output: str) -> str | None:
    """The MLflow run of an earlier attempt."""
    path = storage.join(output, RUN)
    return str(storage.read_json(path)["run_id"]) if storage.exists(path) else None


def _inputs(output: str) -> Mapping[str, Any]:
    """The model and the dataset that a run was begun with, as far as its output tells."""
    run = storage.join(output, RUN)
    known = storage.read_json(run) if storage.exists(run) else {}
    if "model" in known:
        model = validate(ModelConfig, completed(ModelConfig, known["model"]), run)
        return {**known, "model": model}
    # An earlier version kept them with its checkpoints alone.
    store = CheckpointStore(output)
    finished = storage.exists(storage.join(output, RESULT))
    folder = storage.join(output, FINAL) if finished else store.path(store.newest_step())
    manifest, config = storage.join(folder, MANIFEST), storage.join(folder, CONFIG)
    if not (storage.exists(manifest) and storage.exists(config)):
        return {}
    sealed = storage.read_json(manifest)
    raw = parse_yaml(storage.read_bytes(config).decode(), config, ConfigError)
    model = stored_config(raw, sealed, config)
    return {"model": model, "dataset_fingerprint": sealed.get("dataset_fingerprint")}
