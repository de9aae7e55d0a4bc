"""What stages log to their MLflow runs (../runs.py).
Events pass through a spool on disk, so that a dead tracking server never stops a stage."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from caft.config import Config
from caft.errors import StorageError
from caft.secrets import without_secrets
from pipelines.config import TrackingConfig
from pipelines.other_trackers import Also
from pipelines.runs import (
    address_of,
    answers,
    find_run,
    open_client,
    real_run_id,
    start_run,
    warn_away,
)
from pipelines.system_metrics import SystemMetrics
from pipelines.tracking.about import About
from pipelines.tracking.lineage import LONGEST_DIGEST, DatasetUse, ModelMade
from pipelines.tracking.send import EVENTS, PARENT, read_events, send_spool

FLUSH_EVERY_S = 2.0
RETRY_AFTER_S = 5.0
SEND_WITHIN_S = 30.0
MAX_PARAM_CHARS = 500
TABLES = "tables"  # folder of a run's artifacts
FILES = {"artifact", "image"}  # what events call a file of the spool
SPOOL, LOCK = ".spool", "lock"


class Tracker:
    """One MLflow run. Calls return at once; a background thread sends what they recorded.
    `run_id` is that of a stand-in until the server has made the run.

    As a context manager it ends the run: FINISHED, FAILED on an exception, KILLED on Ctrl-C or
    SIGTERM.
    """

    def __init__(
        self, tracking: TrackingConfig, stage: str, run_id: str, system_metrics: bool = False
    ) -> None:
        """Log to a run that was started, perhaps by another process on another machine.

        Args:
            system_metrics: whether the load of this machine is logged with every step's metrics.

        Raises:
            StorageError: the spool cannot be written.
        """
        self.run_id, self._tracking, self._stage = run_id, tracking, stage
        root = _spool_root(tracking)
        _send_left_over(tracking, root)
        self._spool, self._lock = _new_spool(root, stage)
        self._with_system, self._step = system_metrics, 0
        self._recorded = self._sent = 0  # events
        self._hurried = self._closed = self._away = False
        self._give_up_at = 0.0
        self._changed = threading.Condition()  # guards what is above, and the file
        self._shown = 0  # events, in the other places
        self._thread = threading.Thread(target=self._send_until_closed, daemon=True)
        self._thread.start()

    @classmethod
    def start(
        cls,
        tracking: TrackingConfig,
        about: About,
        config: Config,
        links: Mapping[str, str] | None = None,
        run_id: str | None = None,
    ) -> Tracker:
        """Start a run, or resume `run_id`.

        Args:
            links: runs this one builds on, stage -> run id; kept as tags `<stage>_run_id`, and as
                links in the run's description.

        Raises:
            StorageError: the spool cannot be written.
        """
        run_id = start_run(tracking, _spool_root(tracking), about.stage, about.name, run_id)
        tracker = cls(tracking, about.stage, run_id)
        links = {stage: other for stage, other in (links or {}).items() if other}
        tags = {f"{stage}_run_id": other for stage, other in links.items()} | about.tags()
        if tracking.parent_run_id is not None:
            tags[PARENT] = links["parent"] = tracking.parent_run_id
        tracker.set_tags(tags)
        tracker._record({"description": about.description(), "links": links})
        tracker._record({"params": _flatten(without_secrets(config.model_dump(mode="json")))})
        return tracker

    def log_metrics(
        self,
        metrics: Mapping[str, float],
        step: int | None = None,
        model_of: str | None = None,
        dataset: DatasetUse | None = None,
    ) -> None:
        """Log numbers at a step.

        Args:
            model_of: training run whose final model they are about; its page shows them too.
            dataset: what they were measured on.
        """
        self._step = max(self._step, step or 0)
        now = int(time.time() * 1000)
        of: dict[str, Any] = {"run_id": model_of} if model_of else {}
        if dataset is not None:
            of["dataset"] = dataset.name, dataset.digest[:LONGEST_DIGEST]
        event = {"metrics": dict(metrics), "step": step or 0, "time_ms": now}
        self._record(event | ({"of": of} if of else {}))

    def log_datasets(self, uses: Sequence[DatasetUse]) -> None:
        """Log what the run reads or writes."""
        self._record({"datasets": [asdict(use) for use in uses]})

    def log_model(
        self, name: str, step: int, checkpoint: str, params: Mapping[str, object]
    ) -> None:
        """Log the run's final checkpoint as a model, with the run's last metrics; register it where
        `tracking.register` names a registered model."""
        shown = {key: str(value)[:MAX_PARAM_CHARS] for key, value in params.items()}
        made = ModelMade(name, step, checkpoint, shown, self._tracking.register_model)
        self._record({"model": asdict(made)})

    def latest_metrics(self) -> dict[str, float]:
        """Each metric of the run at its last step, as far as they were sent; none while the
        tracking server is away."""
        try:
            run_id = find_run(self._tracking, self.run_id)
            return dict(open_client(self._tracking).get_run(run_id).data.metrics)
        except Exception:  # whatever a dead server raises; the sending thread says so
            return {}

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._record({"tags": dict(tags)})

    def log_table(
        self, rows: Sequence[Mapping[str, Any]], name: str, folder: str | None = None
    ) -> None:
        """Attach rows as `tables/[FOLDER/]NAME.json`, which MLflow's pages show as a table. One
        that is there is replaced, where MLflow's own `log_table` adds to it: a stage that resumes
        logs a table again."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        table = {"columns": columns, "data": [[row.get(key) for key in columns] for row in rows]}
        copy = self._new_copy(f"{name}.json")
        copy.write_text(json.dumps(table), encoding="utf-8")
        place = f"{TABLES}/{folder}" if folder else TABLES
        self._record({"artifact": str(copy), "folder": place, "is_table": True})

    def log_image(self, png: bytes, key: str, step: int) -> None:
        """Show a picture at a step: MLflow's pages have a slider of the steps of each key."""
        copy = self._new_copy("image.png")
        copy.write_bytes(png)
        self._record({"image": str(copy), "key": key, "step": step})

    def log_artifact(self, path: str, folder: str | None = None) -> None:
        """Attach a file; it is copied into the spool now, so it may change afterwards."""
        copy = self._new_copy(Path(path).name)
        shutil.copyfile(path, copy)
        self._record({"artifact": str(copy), "folder": folder})

    def _new_copy(self, name: str) -> Path:
        """A file's place in the spool."""
        copy = self._spool / f"artifact-{uuid.uuid4().hex[:12]}" / name
        copy.parent.mkdir()
        return copy

    def flush(self) -> list[str]:
        """Send what was recorded, and return what the server has not got: nothing, most often; all
        since it went away, at once; after half a minute in any case. Kept elsewhere and given to
        `record_again`, it outlives this machine."""
        with self._changed:
            wanted, self._hurried = self._recorded, True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._sent >= wanted or self._away, SEND_WITHIN_S)
            if self._sent >= wanted:
                return []
            unsent = read_events(self._spool)[self._sent : wanted]
        return [event for event in unsent if not FILES & json.loads(event).keys()]

    def record_again(self, events: Sequence[str]) -> None:
        """Record what `flush` returned, of this run on any machine. What the server has got in the
        meantime stays as it is."""
        for event in events:  # the other places had it when it was recorded first
            self._record(json.loads(event) | {"again": True})

    def close(self, status: str | None = None) -> None:
        """Send what is left, for at most half a minute; `status` ends the run."""
        if status is not None:
            self._record({"status": status})
        with self._changed:
            self._closed, self._give_up_at = True, time.monotonic() + SEND_WITHIN_S
            self._changed.notify_all()
        self._thread.join(SEND_WITHIN_S)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        stopped = kind is not None and issubclass(kind, KeyboardInterrupt | SystemExit)
        self.close("KILLED" if stopped else "FINISHED" if kind is None else "FAILED")

    def _record(self, event: dict[str, Any]) -> None:
        line = json.dumps({"run_id": self.run_id, **event})
        with self._changed, open(self._spool / EVENTS, "a", encoding="utf-8") as stream:
            stream.write(line + "\n")
            self._recorded += 1

    def _send_until_closed(self) -> None:
        also = Also(self._tracking, self._stage, self.run_id)
        with self._lock:
            self._send_repeatedly(also)
        also.close()

    def _send_repeatedly(self, also: Also) -> None:
        warned, logged = False, 0
        system = SystemMetrics() if self._with_system else None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._hurried or self._closed, FLUSH_EVERY_S)
                self._hurried, closing = False, self._closed
            if system is not None:
                system.sample()
                if self._step > logged:
                    logged = self._step
                    self.log_metrics(system.take(), logged)
            if self._tracking.also:
                events = [json.loads(line) for line in read_events(self._spool)[self._shown :]]
                self._shown += len(events)
                also.take([event for event in events if not event.get("again")])
            try:
                sent = send_spool(self._tracking, self._spool)
                self.run_id = real_run_id(self._tracking, self._spool.parent, self.run_id)
                self._tell(sent)
                if closing:
                    shutil.rmtree(self._spool, ignore_errors=True)
                    return
            except Exception as error:  # whatever a dead server raises, the stage goes on
                if not warned:
                    warn_away(self._tracking, error)
                    warned = True
                self._tell(away=True)
                if closing and time.monotonic() > self._give_up_at:
                    return
                with self._changed:
                    self._changed.wait(RETRY_AFTER_S)  # or until somebody is in a hurry

    def _tell(self, sent: int = 0, away: bool = False) -> None:
        """Let `flush` know how far sending is."""
        with self._changed:
            self._sent, self._away = max(self._sent, sent), away
            self._changed.notify_all()


def _spool_root(tracking: TrackingConfig) -> Path:
    """Where this machine keeps what that server has not got yet."""
    server = hashlib.sha256(f"{address_of(tracking)}\n{tracking.experiment}".encode()).hexdigest()
    root = Path(tracking.spool).expanduser() / server[:12]
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"tracking.spool: {root} cannot be written ({error.strerror}); name a folder that "
            "every machine can write"
        ) from None
    return root


def _new_spool(root: Path, stage: str) -> tuple[Path, IO[str]]:
    """A folder, and the lock by which others see that somebody lives who sends what is in it."""
    made = root / f"{stage}-{uuid.uuid4().hex[:12]}"
    made.mkdir()
    lock = open(made / LOCK, "w", encoding="utf-8")  # noqa: SIM115 (held while the tracker lives)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return made.rename(made.with_suffix(SPOOL)), lock


def _send_left_over(tracking: TrackingConfig, root: Path) -> None:
    """Send what earlier stages could not, unless their process still lives. What the server does
    not take, such as of a run that was deleted, stays and holds up nothing else."""
    for spool in sorted(root.glob(f"*{SPOOL}")):
        try:
            with open(spool / LOCK, encoding="utf-8") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                send_spool(tracking, spool)
                shutil.rmtree(spool)
        except (BlockingIOError, FileNotFoundError):  # somebody else sends it, or has sent it
            continue
        except Exception as error:
            warn_away(tracking, error)
            if not answers(tracking):  # and would not take the others either
                return


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
