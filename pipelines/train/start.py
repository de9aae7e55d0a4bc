"""Where a run begins: its own newest checkpoint, that of another run, or random weights.
The driver checks `start_from` before anything starts; each worker loads what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import caft
from caft.checkpoint import (
    MANIFEST,
    TRAINING_STATE,
    WEIGHTS,
    load_weights,
    read_manifest,
    sha256_of,
)
from caft.config import ModelConfig, TextConfig, load_model_config
from caft.errors import CheckpointError, ConfigError
from caft.fine_tuning import freeze_, mixed_weights
from caft.model import CAFT
from pipelines import storage
from pipelines.behaviours import first_change
from pipelines.data.dataset import Dataset
from pipelines.run_layout import RUN
from pipelines.train.checkpoints.store import CheckpointStore, require_same_model
from pipelines.train.config import MODEL_OF_START, StartConfig, TrainConfig
from pipelines.train.identity import AFTER_A_STEP, begun_model

TRAINING = ("dataset", "dataset_fingerprint", "decontamination", "start")  # of a manifest
Weights = Mapping[str, Tensor]


def check_start(
    config: TrainConfig, model: ModelConfig, dataset_fingerprint: str, total_steps: int
) -> dict[str, Any] | None:
    """Whether what `start_from` names serves, an absolute path. A run that has a checkpoint of its
    own needs the start no longer, unless its final weights are mixed with it.

    Returns:
        For the manifests of the run: the checkpoint, the digest of its weights, and what its own
        manifest says of its training; None without `start_from`.

    Raises:
        CheckpointError: nothing there, damaged, of another model, or, with `start_from.state`, of
            another dataset or without a training state.
        ConfigError: the run would end before the step it goes on from, or the output was begun with
            other weights.
    """
    start = config.start_from
    if start is None:
        return None
    path, run = start.checkpoint, storage.join(config.output, RUN)
    known = storage.read_json(run).get("start") if storage.exists(run) else None
    mixes = config.fine_tune is not None and config.fine_tune.start_share > 0
    if known and not mixes and CheckpointStore(config.output).newest_step():
        return known
    with storage.opened(path) as local:
        require_same_model(caft.load_model(local).config, model, path)
        manifest = read_manifest(local, verify=True) if (local / MANIFEST).exists() else {}
        weights = sha256_of(local / WEIGHTS if local.is_dir() else local)
        if start.state and not (local / TRAINING_STATE).is_dir():
            raise CheckpointError(
                f"start_from.checkpoint: {path} has no {TRAINING_STATE}; name a checkpoint of a "
                "run (checkpoints/step-...), or set start_from.state=false"
            )
    if known and known["weights"] != weights:
        raise ConfigError(
            f"start_from.checkpoint: {config.output} was begun with other weights than are in "
            f"{path} now; bring those back or choose another output"
        )
    if start.state:
        trained_on = manifest.get("dataset_fingerprint", dataset_fingerprint)
        if trained_on != dataset_fingerprint and not start.accept_other_dataset:
            raise CheckpointError(
                f"start_from.checkpoint: {path} was trained on another dataset "
                f"({manifest.get('dataset')}); set start_from.accept_other_dataset=true to "
                "continue on this one, or start_from.state=false to begin with its weights"
            )
        if change := first_change(manifest.get("behaviours", {}), AFTER_A_STEP):
            raise CheckpointError(
                f"start_from.checkpoint: {path}: {change}, so going on from its step would mix "
                "both; set start_from.state=false, or go on with the version that made it"
            )
        _require_same_position(manifest, config, total_steps, path)
    training = {name: manifest[name] for name in TRAINING if name in manifest}
    return {"checkpoint": path, "weights": weights, **training}


def _require_same_position(
    manifest: dict[str, Any], config: TrainConfig, total_steps: int, path: str
) -> None:
    """A step says which samples were seen only where both runs count alike."""
    batch = manifest.get("global_batch", config.global_batch)
    if batch != config.global_batch:
        raise CheckpointError(
            f"start_from.checkpoint: {path} was trained with global_batch {batch}, this run has "
            f"{config.global_batch}; restore that value or set start_from.state=false"
        )
    if manifest["step"] >= total_steps:
        raise ConfigError(
            f"epochs: this run ends at step {total_steps:,}, and start_from.checkpoint is at step "
            f"{manifest['step']:,} already; raise epochs or name an earlier checkpoint"
        )


def resolve_model(config: TrainConfig) -> ModelConfig:
    """The model of a configuration; where it is that of the start, an output that was begun knows
    it without the start.

    Raises:
        ConfigError: no such recipe, or one that does not serve.
        CheckpointError: the start cannot be loaded.
    """
    if config.model != MODEL_OF_START:
        return load_model_config(config.model)
    model = begun_model(config.output)
    if model is None:
        assert config.start_from is not None, "checked with the configuration"
        with storage.opened(config.start_from.checkpoint) as local:
            model = caft.load_model(local).config
    # Captions are split as the dataset's were, whatever the start was trained with.
    default = TextConfig().sentences
    return model.model_copy(update={"text": model.text.model_copy(update={"sentences": default})})


def check_fine_tuning(config: TrainConfig, model: ModelConfig) -> None:
    """Print what is trained.

    Raises:
        ConfigError: a name in `fine_tune.freeze` that the model has not, or nothing left to train.
    """
    if config.start_from is None or config.start_from.state:
        return
    with torch.device("meta"):
        whole = CAFT(model)
    if config.fine_tune is not None:
        try:
            freeze_(whole, config.fine_tune.freeze)
        except ConfigError as error:
            raise ConfigError(f"fine_tune.freeze: {error}") from None
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in whole.parameters()]
    trained = sum(size for size, is_trained in sizes if is_trained)
    print(
        f"train: begins with the weights of {config.start_from.checkpoint}; {trained / 1e6:,.1f}M "
        f"of {sum(size for size, _ in sizes) / 1e6:,.1f}M parameters are trained",
        flush=True,
    )


def final_weights(config: TrainConfig) -> Callable[[Weights], Weights]:
    """What a run publishes in place of its last weights: with `fine_tune.start_share`, these mixed
    with the weights of the start, which are loaded now.

    Raises:
        CheckpointError: the start cannot be loaded.
    """
    if config.fine_tune is None or not config.fine_tune.start_share:
        return dict
    assert config.start_from is not None, "checked with the configuration"
    with storage.opened(config.start_from.checkpoint) as local:
        start = caft.load_model(local).state_dict()
    share = config.fine_tune.start_share
    return lambda weights: mixed_weights(start, weights, share)


def reading_as(dataset: Dataset, model: ModelConfig) -> ModelConfig:
    """The model that splits captions as the dataset's were split: it is scored as it was trained.

    Raises:
        ConfigError: the model asks for another rule.
    """
    rule, asked = dataset.split_mode, model.text.sentences
    if asked != rule and asked != TextConfig().sentences:
        raise ConfigError(
            f"model.text.sentences: '{asked}', but the captions of {dataset.path} were split by "
            f"'{rule}'; leave the key out, or build the dataset with captions.split_mode={asked}"
        )
    return model.model_copy(update={"text": model.text.model_copy(update={"sentences": rule})})


@dataclass(frozen=True)
class Start:
    """What a worker group begins with.

    Attributes:
        checkpoint: where it is; None: random weights, from step 0.
        state: go on from its step with its optimiser; else from step 0 with its weights.
    """

    checkpoint: str | None = None
    state: bool = True

    @contextmanager
    def opened(self) -> Iterator[Path | None]:
        """The checkpoint on this machine, for as long as the block runs."""
        if self.checkpoint is None:
            yield None
            return
        with storage.opened(self.checkpoint) as local:
            yield local


def find_start(store: CheckpointStore, start_from: StartConfig | None, model: ModelConfig) -> Start:
    """The run's own newest whole checkpoint, or else what `start_from` names.

    Raises:
        CheckpointError: the newest checkpoint was made with another model configuration.
    """
    step = store.newest_whole(model)
    if step is not None:
        return Start(store.path(step))
    if start_from is None:
        return Start()
    return Start(start_from.checkpoint, start_from.state)


def load_start(model: CAFT, checkpoint: Path) -> None:
    """Give `model` the weights of a checkpoint of any form."""
    if checkpoint.is_dir():
        load_weights(model, checkpoint / WEIGHTS)
    else:
        model.load_state_dict(caft.load_model(checkpoint).state_dict())
