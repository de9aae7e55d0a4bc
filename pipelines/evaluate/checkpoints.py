"""Which models an evaluation is about: names in a configuration to opened checkpoints.
First step of the evaluate stage; a training run's output stands for all that it kept."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from caft.checkpoint import MANIFEST
from caft.errors import CheckpointError
from pipelines import storage, user_paths
from pipelines.evaluate.adapters import Adapter, is_path, open_adapter
from pipelines.run_layout import CHECKPOINTS, FINAL, step_folder, step_of


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found whole."""

    place: str  # as `open_adapter` takes it
    label: str  # names it among those of one evaluation, and its folder
    model: str
    fingerprint: str
    step: int
    run_id: str  # the train stage's MLflow run; empty when unknown
    adapter: Adapter | None  # kept open where there is one checkpoint alone

    @property
    def series(self) -> str:
        """What checkpoints of one training run have in common."""
        return self.run_id or self.place

    @property
    def trained_in(self) -> list[str]:
        """The output of its training run, where it is of one."""
        folder = self.place.rstrip("/").rpartition("/")[0]
        return [folder.removesuffix(f"/{CHECKPOINTS}")] if self.run_id else []

    def open(self) -> Adapter:
        return self.adapter or open_adapter(self.place)


def open_checkpoints(names: Sequence[str]) -> list[Checkpoint]:
    """Open each checkpoint once, so that one that cannot be used stops all before they start.

    Raises:
        CheckpointError: one is missing, unfinished, damaged, or does not fit its configuration.
        ConfigError: a relative path inside a Ray job, or a package that is not installed.
    """
    places = [place for name in names for place in _places(name)]
    places = list(dict.fromkeys(places))
    opened = []
    for place, label in zip(places, _labels(places), strict=True):
        adapter = open_adapter(place)
        opened.append(
            Checkpoint(
                place,
                label,
                adapter.name,
                adapter.fingerprint,
                adapter.step,
                adapter.run_id,
                adapter if len(places) == 1 else None,
            )
        )
    return opened


def _places(name: str) -> list[str]:
    """A checkpoint, or all finished ones of a training run's output, by step."""
    if not is_path(name):
        return [name]
    path = user_paths.usable_path(name, "checkpoint").rstrip("/")
    folder = storage.join(path, CHECKPOINTS)
    steps = [step for step in storage.list_folders(folder) if step_of(step) is not None]
    if not steps:
        return [path]
    kept = [
        storage.join(folder, step)
        for step in steps
        if storage.exists(storage.join(folder, step, MANIFEST))
    ]
    final = storage.join(path, FINAL)
    if storage.exists(storage.join(final, MANIFEST)):
        last = storage.read_json(storage.join(final, MANIFEST))
        if not isinstance(last, dict) or not isinstance(last.get("step", 0), int | None):
            raise CheckpointError(f"{final}/{MANIFEST}: no manifest of a checkpoint")
        own = last.get("averaged", False)  # what the checkpoint of the same step does not have
        if own or step_folder(int(last.get("step") or 0)) not in steps:
            kept.append(final)
    if not kept:
        raise CheckpointError(f"{folder}: none of its {len(steps)} checkpoints is finished")
    return kept


def _labels(places: Sequence[str]) -> list[str]:
    """Short names that tell places apart: as few of their last parts as do."""
    parts = [
        [part for part in re.split(r"[/:]+", p) if part not in ("", CHECKPOINTS)] for p in places
    ]
    for count in range(1, max(map(len, parts)) + 1):
        labels = [re.sub(r"[^\w.-]+", "-", "-".join(part[-count:])) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{n}-{label}" for n, label in enumerate(labels)]
