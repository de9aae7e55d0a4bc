"""Other places that runs are shown in beside MLflow: TensorBoard and Weights & Biases.
Fed by tracking/upload.py with the same events; one that fails is left out."""

from __future__ import annotations

import io
import netrc
import os
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from caft.errors import ConfigError
from pipelines import storage, user_paths
from pipelines.tracking_config import TrackingConfig

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
STEP = "step"  # the horizontal axis in W&B, whose own steps never go back


def check_also(tracking: TrackingConfig) -> dict[str, str]:
    """What changes in the section: `also_folder` made absolute.

    Raises:
        ConfigError: a package is missing, W&B has no key, or the folder would vanish with the
            temporary working directory of a Ray job.
    """
    for name in tracking.also:
        if find_spec(PACKAGES[name]) is None:
            raise ConfigError(
                f"tracking.also: '{name}' needs a package that is not installed here; run `pip "
                f"install {PACKAGES[name]}`, or leave it out"
            )
    if "wandb" in tracking.also and not _has_wandb_key():
        raise ConfigError(
            "tracking.also: 'wandb' has no key; set WANDB_API_KEY, run `wandb login`, or keep runs "
            "on this machine with WANDB_MODE=offline"
        )
    if not tracking.also or tracking.also_folder.startswith("~"):
        return {}
    folder = user_paths.usable_path(tracking.also_folder, "tracking.also_folder", folder=True)
    if not storage.is_local(folder):
        raise ConfigError(f"tracking.also_folder: '{folder}' must be a folder that nodes mount")
    return {"also_folder": folder}


class Also:
    """A run in the other trackers that its configuration names. One that fails is left out."""

    def __init__(self, tracking: TrackingConfig, stage: str, run_key: str, output: str) -> None:
        """Show the run of this key; the files that its events name are in `output`."""
        folder = Path(tracking.also_folder.removeprefix("file://")).expanduser()
        self._run, self._folder, self._output = (
            (tracking.experiment, stage, run_key),
            folder,
            output,
        )
        self._names = list(tracking.also)
        self._places: dict[str, Place] = {}

    def take(self, event: Mapping[str, Any]) -> None:
        """Show what was logged."""
        if "image" in event:
            file = io.BytesIO(storage.read_bytes(storage.join(self._output, event["file"])))
            with Image.open(file) as picture:
                event = event["image"] | {"picture": picture.convert("RGB")}
        self._each(lambda place: place.take(event))

    def close(self) -> None:
        self._each(lambda place: place.close())

    def _each(self, call: Callable[[Place], None]) -> None:
        for name in list(self._names):
            try:
                if name not in self._places:
                    self._places[name] = KINDS[name](self._folder / name, *self._run)
                call(self._places[name])
            except Exception as error:  # whatever another tracker raises, the stage continues
                self._names.remove(name)
                reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
                text = f"tracking: {name} is left out from here on ({reason})"
                print(text, file=sys.stderr, flush=True)


class Place(Protocol):
    """Where a run is shown."""

    def take(self, event: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files below `folder`, of this process."""

    def __init__(self, folder: Path, experiment: str, stage: str, run_id: str) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder / experiment / f"{stage}-{run_id}"))

    def take(self, event: Mapping[str, Any]) -> None:
        for name, value in event.get("metrics", {}).items():
            self._writer.add_scalar(name, value, event["step"], event["time_ms"] / 1000)
        if "picture" in event:
            pixels = np.asarray(event["picture"])
            self._writer.add_image(event["key"], pixels, event["step"], dataformats="HWC")
        if "description" in event:
            self._writer.add_text("description", "\n".join(event["description"]))
        if "params" in event:
            rows = "\n".join(f"| {name} | {value} |" for name, value in event["params"].items())
            self._writer.add_text("parameters", f"| key | value |\n|---|---|\n{rows}")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A W&B run whose id is the run's key, so that a stage that resumes finds it again."""

    def __init__(self, folder: Path, experiment: str, stage: str, run_id: str) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(silent=True, console="off", disable_git=True, save_code=False)
        self._wandb = wandb
        self._run = wandb.init(
            project=experiment,
            id=run_id,
            job_type=stage,
            dir=str(folder),
            resume="allow",
            reinit="create_new",
            settings=settings,
        )
        self._run.define_metric(STEP, hidden=True)
        self._run.define_metric("*", step_metric=STEP)
        self._exit_code = 0

    def take(self, event: Mapping[str, Any]) -> None:
        if "metrics" in event:
            self._run.log({**event["metrics"], STEP: event["step"]})
        elif "picture" in event:
            self._run.log({event["key"]: self._wandb.Image(event["picture"]), STEP: event["step"]})
        elif "params" in event:
            self._run.config.update(event["params"], allow_val_change=True)
        elif "tags" in event:
            self._run.config.update({"tags": event["tags"]}, allow_val_change=True)
        elif "description" in event:
            self._run.notes = "\n".join(event["description"])
        elif "status" in event:
            self._exit_code = int(event["status"] != "FINISHED")

    def close(self) -> None:
        self._run.finish(exit_code=self._exit_code)


KINDS: dict[str, Callable[[Path, str, str, str], Place]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
