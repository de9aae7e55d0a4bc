"""Where a run begins: its own newest checkpoint, that of another run, or random weights.
The driver checks `start_from` before anything starts; each worker loads what was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import caft
from caft.checkpoint import MANIFEST, TRAINING_STATE, WEIGHTS, load_weights, read_manifest
from caft.config import ModelConfig, TextConfig
from caft.errors import CheckpointError, ConfigError
from caft.model import CAFT
from pipelines import storage
from pipelines.behaviours import first_change
from pipelines.data.dataset import Dataset
from pipelines.train.checkpoints.store import CheckpointStore, require_same_model
from pipelines.train.config import StartConfig, TrainConfig
from pipelines.train.identity import AFTER_A_STEP


def check_start(
    config: TrainConfig, model: ModelConfig, dataset_fingerprint: str, total_steps: int
) -> None:
    """Whether what `start_from` names serves, an absolute path.

    Raises:
        CheckpointError: nothing there, damaged, of another model or dataset, or without the state
            that `start_from.state` asks for.
        ConfigError: the run would end before the step it goes on from, or a relative path in a job.
    """
    start = config.start_from
    if start is None:
        return
    path = start.checkpoint
    with storage.opened(path) as local:
        require_same_model(caft.load_model(local).config, model, path)
        manifest = read_manifest(local, verify=True) if (local / MANIFEST).exists() else {}
        if start.state and not (local / TRAINING_STATE).is_dir():
            raise CheckpointError(
                f"start_from.checkpoint: {path} has no {TRAINING_STATE}; name a checkpoint of a "
                "run (checkpoints/step-...), or set start_from.state=false"
            )
    trained_on = manifest.get("dataset_fingerprint", dataset_fingerprint)
    if trained_on != dataset_fingerprint and not start.accept_other_dataset:
        raise CheckpointError(
            f"start_from.checkpoint: {path} was trained on another dataset "
            f"({manifest.get('dataset')}); set start_from.accept_other_dataset=true if it may"
        )
    if start.state:
        if change := first_change(manifest.get("behaviours", {}), AFTER_A_STEP):
            raise CheckpointError(
                f"start_from.checkpoint: {path}: {change}, so going on from its step would mix "
                "both; set start_from.state=false, or go on with the version that made it"
            )
        _require_same_position(manifest, config, total_steps, path)


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
