"""Weights between those of a start and those that were fine-tuned from it, as a checkpoint folder.
Behind `python -m caft.checkpoint mix`; a training mixes at its end, by `fine_tune.start_share`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from caft.checkpoint import MANIFEST, load_model, read_manifest, require_new, write_checkpoint
from caft.errors import CheckpointError, ConfigError
from caft.fine_tuning import mixed_weights
from caft.model import CAFT

# Of the fine-tuned model's manifest: what its weights were trained on.
KEPT = ("step", "dataset", "dataset_fingerprint", "decontamination", "start", "recipe")


def mix(start: str | Path, tuned: str | Path, folder: str | Path, start_share: float) -> CAFT:
    """Write a checkpoint folder with `start_share` of the start's weights and the rest of the
    fine-tuned ones, in float32, and return its model.

    Args:
        start, tuned: anything that `load_model` reads, of one architecture.
        folder: new or empty.

    Raises:
        ConfigError: a share that is not between 0 and 1.
        CheckpointError: as `load_model`, weights of different models, or `folder` is not empty.
        StorageError: `folder` cannot be written.
    """
    start, tuned, folder = Path(start), Path(tuned), Path(folder)
    if not 0 <= start_share <= 1:
        raise ConfigError(f"start share {start_share:g}: must be between 0 and 1")
    require_new(folder)
    model = load_model(tuned)
    try:
        weights = mixed_weights(load_model(start).state_dict(), model.state_dict(), start_share)
    except CheckpointError as error:
        raise CheckpointError(f"{start} and {tuned}: {error}") from None
    model.load_state_dict(weights)
    known: dict[str, Any] = read_manifest(tuned) if (tuned / MANIFEST).is_file() else {}
    info = {key: known[key] for key in KEPT if key in known}
    info["mixed"] = {"start": str(start), "tuned": str(tuned), "start_share": start_share}
    write_checkpoint(model, folder, info)
    return model
