"""The finished model of a run, published again from its last checkpoint where it was lost.
The worker that makes the last step publishes it first, in saver.py."""

from __future__ import annotations

from pathlib import Path

import caft
from caft.checkpoint import TRAINING_STATE, read_manifest, save_weights, write_manifest
from caft.errors import CheckpointError
from pipelines import storage
from pipelines.run_layout import AVERAGE, FINAL
from pipelines.train.checkpoints.store import CheckpointStore, publish
from pipelines.train.config import TrainConfig
from pipelines.train.start import final_weights


def restore_final(config: TrainConfig, step: int) -> None:
    """Make sure that a finished run's model is there and whole.

    Raises:
        CheckpointError: it is not, and the checkpoint of the last step is not either.
    """
    output, final = config.output, storage.join(config.output, FINAL)
    try:
        with storage.opened(final) as local:
            read_manifest(local, verify=True)
        return
    except CheckpointError as error:
        lost = error
    except caft.errors.StorageError as error:
        lost = CheckpointError(str(error))
    path = CheckpointStore(output).path(step)
    try:
        with storage.opened(path) as local:
            manifest = read_manifest(local, verify=True)
            publish(final, lambda folder: _write(config, local, manifest, folder))
    except (CheckpointError, caft.errors.StorageError) as error:
        raise CheckpointError(
            f"{lost}; it cannot be published again from {path}: {error}; train again, into "
            "another output"
        ) from None
    print(f"train: {lost}; published again from {path}", flush=True)


def _write(config: TrainConfig, checkpoint: Path, manifest: dict, folder: Path) -> None:
    from safetensors.torch import load_file

    model = caft.load_model(checkpoint)
    average = checkpoint / TRAINING_STATE / AVERAGE
    averaged = load_file(average) if average.exists() else {}
    weights = final_weights(config)({**model.state_dict(), **averaged})
    save_weights(model, folder, weights)
    info = {key: value for key, value in manifest.items() if key not in ("format", "version")}
    info.pop("files")
    write_manifest(folder, {**info, "averaged": bool(averaged)})
