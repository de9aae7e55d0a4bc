"""Where a run's checkpoints lie, on a disk or in a bucket: publishing, finding, throwing away.
A checkpoint is whole once its manifest is there, and the manifest is always the last file."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from caft.checkpoint import CONFIG, MANIFEST, TRAINING_STATE, read_manifest, stored_config
from caft.config import ModelConfig, read_yaml
from caft.errors import CheckpointError, StorageError
from pipelines import storage
from pipelines.identity import Difference, first_difference
from pipelines.run_layout import CHECKPOINTS, UNSENT, step_folder, step_of
from pipelines.train.config import CheckpointConfig

# Keys of a model's configuration that do not shape it.
NO_ARCHITECTURE = ("name", "unit_queries", "text.sentences")


class CheckpointStore:
    """The checkpoints of the run in `output`, by step.

    Attributes:
        scores: metrics by step that an evaluation beside training found out after the checkpoint
            of that step was sealed.
    """

    def __init__(self, output: str) -> None:
        self._folder = storage.join(output, CHECKPOINTS)
        self.scores: Callable[[int], Mapping[str, float]] = lambda step: {}

    def path(self, step: int) -> str:
        return storage.join(self._folder, step_folder(step))

    def steps(self) -> list[int]:
        """Of all folders, whole or not, ascending."""
        steps = map(step_of, storage.list_folders(self._folder))
        return sorted(step for step in steps if step is not None)

    def newest_step(self) -> int:
        """Of the newest checkpoint with a manifest; 0 without any."""
        has_manifest = (s for s in reversed(self.steps()) if self._sealed(s))
        return next(has_manifest, 0)

    def newest_whole(self, model: ModelConfig) -> int | None:
        """Step of the newest whole checkpoint; a damaged newer one is passed over with a line.

        Raises:
            CheckpointError: the checkpoint was made with another model configuration.
        """
        for step in reversed(self.steps()):
            path = self.path(step)
            if not self._sealed(step):  # nothing to fetch
                print(f"train: passing over {path}: no {MANIFEST}, it was not finished", flush=True)
                continue
            with storage.opened(path) as folder:
                try:
                    manifest = read_manifest(folder, verify=True)
                except CheckpointError as error:
                    print(f"train: passing over {path}: {error}", flush=True)
                    continue
                config = read_yaml(folder / CONFIG)
                require_same_model(stored_config(config, manifest, f"{path}/{CONFIG}"), model, path)
                return step
        return None

    def manifest(self, step: int) -> dict[str, Any]:
        """Of the checkpoint of `step`, which has one."""
        return storage.read_json(storage.join(self.path(step), MANIFEST))

    def unsent(self, step: int) -> list[str]:
        """What earlier versions kept in a checkpoint of what the tracking server had not got."""
        path = storage.join(self.path(step), TRAINING_STATE, UNSENT)
        return storage.read_bytes(path).decode().splitlines() if storage.exists(path) else []

    def publish(self, step: int, write: Callable[[Path], None]) -> None:
        """As the function `publish`, for the checkpoint of `step`."""
        publish(self.path(step), write)

    def prune(self, config: CheckpointConfig) -> None:
        """Delete what need not stay, and what was never finished before the newest."""
        steps = self.steps()
        sealed = [step for step in steps if self._sealed(step)]
        stay = {*sealed[-config.keep :], *config.at_steps}
        if config.keep_every_steps is not None:
            stay |= {step for step in sealed if step % config.keep_every_steps == 0}
        stay |= set(self._best(sealed, config))
        newest = max(sealed, default=0)
        for step in (step for step in steps if step not in stay and step < newest):
            # First the manifest: what is deleted in part must not look whole.
            storage.delete_file(storage.join(self.path(step), MANIFEST))
            storage.delete_folder(self.path(step))

    def _best(self, steps: list[int], config: CheckpointConfig) -> list[int]:
        if not config.keep_best:
            return []
        sign = 1.0 if config.best_is == "lowest" else -1.0
        known = {step: self._metrics(step).get(config.best_metric) for step in steps}
        scored = {
            step: sign * value
            for step, value in known.items()
            if value is not None and math.isfinite(value)
        }
        return sorted(scored, key=lambda step: (scored[step], -step))[: config.keep_best]

    def _metrics(self, step: int) -> dict[str, float]:
        """Of its manifest, where that is not damaged, and those found later."""
        try:
            manifest = self.manifest(step)
        except StorageError:
            manifest = {}
        stored = manifest.get("metrics") if isinstance(manifest, dict) else None
        known = stored.items() if isinstance(stored, dict) else ()
        numbers = {name: value for name, value in known if isinstance(value, int | float)}
        return {**numbers, **self.scores(step)}

    def _sealed(self, step: int) -> bool:
        return storage.exists(storage.join(self.path(step), MANIFEST))


def publish(path: str, write: Callable[[Path], None]) -> None:
    """Make the checkpoint folder `path`: `write` fills a local folder and seals it with a manifest,
    which is the last file to arrive.

    Raises:
        StorageError: no space left, no permission, or an unreachable bucket.
    """
    storage.delete_folder(path)  # half of one, from before a crash
    try:
        if storage.is_local(path):
            folder = Path(path.removeprefix("file://"))
            folder.mkdir(parents=True)
            write(folder)
            return
        with tempfile.TemporaryDirectory(prefix="caft-checkpoint-") as local:
            write(Path(local))
            files = [file for file in sorted(Path(local).rglob("*")) if file.is_file()]
            for file in sorted(files, key=lambda file: file.name == MANIFEST):
                storage.upload(file, storage.join(path, file.relative_to(local).as_posix()))
    except (OSError, SafetensorError) as error:
        known = error if isinstance(error, OSError) else OSError(str(error))
        raise storage.write_error(path, known) from None


def require_same_model(theirs: ModelConfig, ours: ModelConfig, path: str) -> None:
    """Refuse a checkpoint of another architecture, which a name and the ways to read captions and
    to score are no part of.

    Raises:
        CheckpointError: naming the first key that differs.
    """
    different = model_difference(theirs, ours)
    if different is not None:
        key, then, now = different
        raise CheckpointError(
            f"{path}/{CONFIG}: made with model.{key}={then!r}, this run has {now!r}; "
            "restore that value or choose another output"
        )


def model_difference(theirs: ModelConfig, ours: ModelConfig) -> Difference | None:
    """The first key that shapes what a model learns and has another value."""
    return first_difference(_shaping(theirs), _shaping(ours))


def _shaping(model: ModelConfig) -> dict[str, Any]:
    values = model.model_dump(mode="json")
    for key in NO_ARCHITECTURE:
        *sections, leaf = key.split(".")
        section = values
        for name in sections:
            section = section[name]
        section.pop(leaf, None)
    return values
