"""What stages log of their runs: into the event log in their output (events.py), always.
The driver of a stage also sends it to MLflow (upload.py) and shows it in other trackers."""

from __future__ import annotations

import io
import json
import math
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from PIL import Image

from caft.config import Config
from caft.errors import ConfigError, StorageError
from caft.secrets import without_secrets
from pipelines import storage
from pipelines.system_metrics import SystemMetrics
from pipelines.tracking.about import About
from pipelines.tracking.events import FILES, Event, EventLog, Writer
from pipelines.tracking.lineage import LONGEST_DIGEST, DatasetUse, ModelMade
from pipelines.tracking.upload import NO_METRICS, Uploader
from pipelines.tracking_config import TrackingConfig

EVERY_S, EVERY_REMOTE_S = 2.0, 10.0  # of an output on a disk, and in a bucket
RETRY_AFTER_S = 5.0
SEND_WITHIN_S = 30.0
MAX_PARAM_CHARS = 500
TABLES, IMAGES = "tables", "images"  # folders of a run's artifacts


class Tracker:
    """One run. Calls return at once. The driver's also sends what all processes of the stage log,
    on a background thread; a server that is unreachable, or refuses, stops nothing.

    As a context manager it ends the run: FINISHED, FAILED on an exception, KILLED on Ctrl-C or
    SIGTERM.
    """

    def __init__(
        self, log: EventLog, system_metrics: bool = False, uploader: Uploader | None = None
    ) -> None:
        """Log to a run that the driver of this stage has started, perhaps on another machine; with
        `system_metrics` the load of this one too. The driver's has an `uploader`."""
        self._log, self._writer, self._uploader = log, Writer(log), uploader
        self._system = SystemMetrics() if system_metrics else None
        self._step = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    @classmethod
    def start(
        cls,
        tracking: TrackingConfig,
        about: About,
        config: Config,
        log: EventLog,
        links: Mapping[str, str] | None = None,
        earlier: str | None = None,
        inputs: Sequence[str] = (),
    ) -> Tracker:
        """Start a run, or resume that of the log.

        Args:
            links: runs this one builds on, stage -> run id, for tags and description.
            earlier: how a version without event logs knew the run that is resumed.
            inputs: outputs of other stages that this one reads, whose rest is sent too.

        Raises:
            StorageError: the output cannot be written.
            ConfigError: the server would refuse the run at every time.
        """
        log.begin(about.stage, about.name, earlier)
        uploader = Uploader(log, tracking, inputs)
        try:
            uploader.connect()
        except ConfigError:
            raise
        except Exception as error:  # any failure of the server or of the way to it
            uploader.warn(NO_METRICS, error)
        tracker = cls(log, uploader=uploader)
        known = {**(links or {}), "parent": tracking.parent_run_id}
        links = {stage: other for stage, other in known.items() if other}
        tracker._record({"status": "RUNNING"})
        tracker.set_tags(about.tags())
        tracker._record({"description": about.description(), "links": links})
        tracker._record({"params": _flatten(without_secrets(config.model_dump(mode="json")))})
        return tracker

    @property
    def run_id(self) -> str:
        """In the driver: the run's id on the server, its key until it has one."""
        assert self._uploader is not None, "the driver alone knows the server"
        return self._uploader.run_id

    def log_metrics(
        self,
        metrics: Mapping[str, float],
        step: int | None = None,
        model_of: str | None = None,
        dataset: DatasetUse | None = None,
    ) -> None:
        """Log numbers at a step: about the final model of the training run `model_of`, whose page
        shows them too, and measured on `dataset`, where these are given."""
        self._step = max(self._step, step or 0)
        of: dict[str, Any] = {"run_id": model_of} if model_of else {}
        if dataset is not None:
            of["dataset"] = dataset.name, dataset.digest[:LONGEST_DIGEST]
        event = {"metrics": dict(metrics), "step": step or 0, "time_ms": _now_ms()}
        self._record(event | ({"of": of} if of else {}))

    def log_datasets(self, uses: Sequence[DatasetUse]) -> None:
        """Log what the run reads or writes."""
        self._record({"datasets": [asdict(use) for use in uses]})

    def log_model(
        self, name: str, step: int, checkpoint: str, params: Mapping[str, object]
    ) -> None:
        """Log the run's final checkpoint as a model, with the run's last metrics; register it where
        `tracking.register` names a registered model."""
        register = self._uploader.tracking.register_model if self._uploader else None
        shown = {key: str(value)[:MAX_PARAM_CHARS] for key, value in params.items()}
        self._record({"model": asdict(ModelMade(name, step, checkpoint, shown, register))})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._record({"tags": dict(tags)})

    def log_table(
        self, rows: Sequence[Mapping[str, Any]], name: str, folder: str | None = None
    ) -> None:
        """Attach rows as `tables/[FOLDER/]NAME.json`, which MLflow's pages show as a table. One
        that is there is replaced: a stage that resumes logs a table again."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        table = {"columns": columns, "data": [[row.get(key) for key in columns] for row in rows]}
        place = f"{TABLES}/{folder}" if folder else TABLES
        self._attach(json.dumps(table).encode(), place, f"{name}.json", is_table=True)

    def log_image(self, png: bytes, key: str, step: int) -> None:
        """Show a picture at a step: MLflow's pages have a slider of the steps of each key."""
        from mlflow.tracking.multimedia import compress_image_size

        now, small = _now_ms(), io.BytesIO()
        with Image.open(io.BytesIO(png)) as picture:
            compress_image_size(picture).save(small, "WEBP")
        # The names by which those pages find a picture and its small copy.
        name = f"{key.replace('/', '~')}+step+{step}+timestamp+{now}+{uuid.uuid4()}"
        shown = {"key": key, "step": step, "time_ms": now}
        self._attach(png, IMAGES, f"{name}.png", image=shown)
        self._attach(small.getvalue(), IMAGES, f"{name}+compressed.webp")
        self.set_tags({"mlflow.loggedImages": "True"})

    def log_artifact(self, path: str, folder: str | None = None, **more: Any) -> None:
        """Attach a file of the output, as it is when it is sent."""
        self._record({"file": path.removeprefix(f"{self._log.output}/"), "folder": folder, **more})

    def record_again(self, events: Sequence[str]) -> None:
        """Record what an earlier version kept in a checkpoint, having not sent it."""
        for event in events:
            self._record(json.loads(event))

    def flush(self) -> None:
        """Return once what was logged is in the log, where it outlives this machine."""
        self._writer.write(durably=True)

    def close(self, status: str | None = None) -> None:
        """Write what is left and, in the driver, send it for half a minute at most; `status` ends
        the run."""
        if status is not None:
            self._record({"status": status})
        self._closed.set()
        self._thread.join(2 * SEND_WITHIN_S)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        stopped = kind is not None and issubclass(kind, KeyboardInterrupt | SystemExit)
        self.close("KILLED" if stopped else "FINISHED" if kind is None else "FAILED")

    def _record(self, event: Event) -> None:
        self._writer.append(event)

    def _attach(self, data: bytes, folder: str, name: str, **more: Any) -> None:
        path = self._log.path(FILES, folder, name)
        try:
            storage.write_bytes(path, data)
        except StorageError as error:
            print(f"tracking: {error}; it is not attached", file=sys.stderr, flush=True)
        else:
            self.log_artifact(path, folder, **more)

    def _work(self) -> None:
        """Until `close`: sample, write, and in the driver send."""
        every_s = EVERY_S if self._log.is_local else EVERY_REMOTE_S
        logged, ends_at = 0, math.inf
        while True:
            closing = self._closed.wait(every_s)
            if self._system is not None:
                self._system.sample()
                if self._step > logged:
                    logged = self._step
                    self.log_metrics(self._system.take(), logged)
            self._writer.write()
            is_up = self._uploader is None or self._uploader.try_to_send(closing)
            if closing:
                ends_at = min(ends_at, time.monotonic() + SEND_WITHIN_S)
                if is_up or time.monotonic() > ends_at:
                    break
            if not is_up:
                (time.sleep if closing else self._closed.wait)(RETRY_AFTER_S)
        if self._uploader is not None:
            self._uploader.close()


def _now_ms() -> int:
    return int(time.time() * 1000)


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested configuration as MLflow parameters."""
    flat: dict[str, str] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            flat |= _flatten(item, f"{name}.")
        else:
            flat[name] = str(item)[:MAX_PARAM_CHARS]
    return flat
