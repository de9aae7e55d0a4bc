"""MLflow runs of the stages; the only module that talks to MLflow.
Events pass through a spool on disk, so that a dead tracking server never stops a stage."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from caft import __version__
from caft.config import Config
from caft.errors import ConfigError, StorageError
from pipelines.config import TrackingConfig
from pipelines.system_metrics import SystemMetrics

FLUSH_EVERY_S = 2.0
RETRY_AFTER_S = 5.0
SEND_WITHIN_S = 30.0
MAX_PARAM_CHARS = 500
PENDING = "pending-"
PARENT = "mlflow.parentRunId"  # MLflow's own name
SQLITE = "sqlite:///"
SECRET_WORDS = ("secret", "token", "password", "credential")


class Tracker:
    """One MLflow run. Calls return at once; a background thread sends what they recorded.

    As a context manager it ends the run: FINISHED, FAILED on an exception, KILLED on Ctrl-C.
    """

    def __init__(
        self, tracking: TrackingConfig, spool: Path, run_id: str, system_metrics: bool = False
    ) -> None:
        self.run_id = run_id
        self._tracking, self._spool = tracking, spool
        self._with_system, self._step = system_metrics, 0
        self._recorded = self._sent = 0  # events
        self._hurried = self._closed = self._away = False
        self._give_up_at = 0.0
        self._changed = threading.Condition()  # guards what is above, and the file
        self._thread = threading.Thread(target=self._send_until_closed, daemon=True)
        self._thread.start()

    @classmethod
    def start(
        cls,
        tracking: TrackingConfig,
        stage: str,
        name: str,
        config: Config,
        links: Mapping[str, str] | None = None,
        run_id: str | None = None,
        system_metrics: bool = False,
    ) -> Tracker:
        """Start a run, or take up `run_id` again.

        Args:
            links: runs this one builds on, stage -> run id; kept as tags `<stage>_run_id`.
            system_metrics: whether the load of this machine is logged with every step's metrics.
        """
        root = Path(tracking.spool)
        _send_left_over(tracking, root)
        spool = root / f"{stage}-{uuid.uuid4().hex[:12]}.{os.getpid()}.spool"
        spool.mkdir(parents=True)
        run_id = run_id or _create_run(tracking, root, stage, name)
        tracker = cls(tracking, spool, run_id, system_metrics)
        tags = {f"{other}_run_id": value for other, value in (links or {}).items() if value}
        if tracking.parent_run_id is not None:
            tags[PARENT] = tracking.parent_run_id
        tags |= {"stage": stage, "caft_version": __version__, "git_revision": _git_revision()}
        tracker.set_tags(tags)
        tracker._record({"params": _flatten(config.model_dump(mode="json"))})
        return tracker

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._step = max(self._step, step or 0)
        now = int(time.time() * 1000)
        self._record({"metrics": dict(metrics), "step": step or 0, "time_ms": now})

    def latest_metrics(self) -> dict[str, float]:
        """Each metric of the run at its last step, as far as they were sent; none while the
        tracking server is away."""
        try:
            run_id = _real_run_id(self._tracking, self._spool.parent, self.run_id)
            return dict(_client(self._tracking).get_run(run_id).data.metrics)
        except Exception:  # whatever a dead server raises; the sending thread says so
            return {}

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._record({"tags": dict(tags)})

    def log_artifact(self, path: str, folder: str | None = None) -> None:
        """Attach a file; it is copied into the spool now, so it may change afterwards."""
        copy = self._spool / f"artifact-{uuid.uuid4().hex[:12]}" / Path(path).name
        copy.parent.mkdir()
        shutil.copyfile(path, copy)
        self._record({"artifact": str(copy), "folder": folder})

    def flush(self) -> None:
        """Return when all that was recorded is with the server, so that a machine that is lost
        takes nothing of it along; at once while the server is away, after half a minute anyhow."""
        with self._changed:
            wanted, self._hurried = self._recorded, True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._sent >= wanted or self._away, SEND_WITHIN_S)

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
        stopped = kind is not None and issubclass(kind, KeyboardInterrupt)
        self.close("KILLED" if stopped else "FINISHED" if kind is None else "FAILED")

    def _record(self, event: dict[str, Any]) -> None:
        line = json.dumps({"run_id": self.run_id, **event})
        with self._changed, open(self._spool / "events.jsonl", "a", encoding="utf-8") as stream:
            stream.write(line + "\n")
            self._recorded += 1

    def _send_until_closed(self) -> None:
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
            try:
                self._tell(sent=_send_spool(self._tracking, self._spool))
                if closing:
                    shutil.rmtree(self._spool, ignore_errors=True)
                    return
            except Exception as error:  # whatever a dead server raises, the stage goes on
                if not warned:
                    _warn(self._tracking, error)
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


def experiment_page(server: str, tracking: TrackingConfig) -> str:
    """Where a browser finds the experiment's runs on an MLflow server that shows `tracking`."""
    experiment = _client(tracking).get_experiment_by_name(tracking.experiment)
    assert experiment is not None, "a stage makes the experiment before anybody looks for it"
    # Without the last part MLflow opens its page for language-model traces, which is empty here.
    return f"{server}/#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning"


def read_artifacts(
    tracking: TrackingConfig, run_id: str, names: Collection[str]
) -> dict[str, bytes]:
    """A run's files of these names, at its top or in a folder there, by their paths in the run.

    Raises:
        ConfigError: the server cannot be reached, or the experiment has no such run.
        StorageError: a file that cannot be fetched.
    """
    from mlflow.exceptions import MlflowException

    client = _client(tracking)
    try:
        experiment = client.get_experiment_by_name(tracking.experiment)
        run = client.get_run(run_id)
        if experiment is None or run.info.experiment_id != experiment.experiment_id:
            raise ConfigError(
                f"tracking.experiment: '{tracking.experiment}' has no run {run_id}; name the "
                "experiment that it is in"
            )
        top = client.list_artifacts(run_id)
        inner = [file for f in top if f.is_dir for file in client.list_artifacts(run_id, f.path)]
        paths = [f.path for f in (*top, *inner) if f.path.rpartition("/")[2] in names]
    except MlflowException as error:
        reason = str(error).splitlines()[0][:200]
        raise ConfigError(f"tracking.uri: {_shown_uri(tracking)}: run {run_id}: {reason}") from None
    files = {}
    for path in paths:
        with tempfile.TemporaryDirectory() as folder:
            try:
                files[path] = Path(client.download_artifacts(run_id, path, folder)).read_bytes()
            except (MlflowException, OSError) as error:
                reason = " ".join(str(error).split())[:200]
                raise StorageError(f"MLflow run {run_id}: {path}: {reason}") from None
    return files


def _send_spool(tracking: TrackingConfig, spool: Path) -> int:
    """Send the events of one spool folder that were not sent yet, in order; how many are sent."""
    client = _client(tracking)
    path, mark = spool / "events.jsonl", spool / "sent"
    sent = int(mark.read_text()) if mark.exists() else 0
    if not path.exists():
        return 0
    for line in path.read_text(encoding="utf-8").splitlines()[sent:]:
        event = json.loads(line)
        _send_event(client, tracking, spool.parent, event)
        sent += 1
        mark.write_text(str(sent))
    return sent


def _send_event(client: Any, tracking: TrackingConfig, root: Path, event: dict[str, Any]) -> None:
    from mlflow.entities import Metric, Param, RunTag

    run_id = _real_run_id(tracking, root, event["run_id"])
    if "metrics" in event:
        metrics = [
            Metric(name, float(value), event["time_ms"], event["step"])
            for name, value in event["metrics"].items()
        ]
        client.log_batch(run_id, metrics=metrics)
    elif "params" in event:
        known = client.get_run(run_id).data.params  # a run taken up again keeps its first ones
        params = [Param(k, v) for k, v in event["params"].items() if k not in known]
        for start in range(0, len(params), 100):
            client.log_batch(run_id, params=params[start : start + 100])
    elif "tags" in event:
        tags = {k: _real_run_id(tracking, root, str(v)) for k, v in event["tags"].items()}
        client.log_batch(run_id, tags=[RunTag(k, v) for k, v in tags.items()])
    elif "artifact" in event:
        client.log_artifact(run_id, event["artifact"], event["folder"])
    else:
        client.set_terminated(run_id, event["status"])


def _create_run(tracking: TrackingConfig, root: Path, stage: str, name: str) -> str:
    """A new run's id; with the server away, a stand-in that becomes a run when it is back."""
    try:
        return _new_run(tracking, stage, name)
    except Exception as error:  # any failure of the server or of the way to it
        _warn(tracking, error)
        stand_in = f"{PENDING}{uuid.uuid4().hex}"
        (root / stand_in).write_text(json.dumps({"stage": stage, "name": name}))
        return stand_in


def _real_run_id(tracking: TrackingConfig, root: Path, run_id: str) -> str:
    if not run_id.startswith(PENDING) or not (root / run_id).exists():
        return run_id
    known = json.loads((root / run_id).read_text())
    if "run_id" not in known:
        known["run_id"] = _new_run(tracking, known["stage"], known["name"])
        (root / run_id).write_text(json.dumps(known))
    return str(known["run_id"])


def _new_run(tracking: TrackingConfig, stage: str, name: str) -> str:
    client = _client(tracking)
    experiment = client.get_experiment_by_name(tracking.experiment)
    experiment_id = (
        experiment.experiment_id
        if experiment is not None
        else client.create_experiment(tracking.experiment, _artifact_location(tracking))
    )
    run_name = stage if name == stage else f"{stage} {name}"
    run = client.create_run(experiment_id, run_name=run_name)
    return str(run.info.run_id)


def _artifact_location(tracking: TrackingConfig) -> str | None:
    """Beside the SQLite file, so that artifacts never land relative to a working directory."""
    if tracking.artifact_root is not None:
        return tracking.artifact_root
    if tracking.uri.startswith(SQLITE):
        return (_sqlite_file(tracking.uri).parent / "mlartifacts").as_uri()
    return None


def _client(tracking: TrackingConfig) -> Any:
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow import MlflowClient

    uri = tracking.uri
    if uri.startswith(SQLITE):
        file = _sqlite_file(uri)
        file.parent.mkdir(parents=True, exist_ok=True)
        uri = f"{SQLITE}{file}"
    return MlflowClient(tracking_uri=uri)


def _sqlite_file(uri: str) -> Path:
    return Path(uri.removeprefix(SQLITE)).absolute()


def _send_left_over(tracking: TrackingConfig, root: Path) -> None:
    """Send what earlier stages could not, unless their process still lives."""
    for spool in sorted(root.glob("*.spool")):
        pid = int(spool.name.split(".")[-2])
        if pid != os.getpid() and not Path(f"/proc/{pid}").exists():
            try:
                _send_spool(tracking, spool)
                shutil.rmtree(spool)
            except Exception as error:  # still away: it stays for the next stage
                _warn(tracking, error)
                return


def _warn(tracking: TrackingConfig, error: Exception) -> None:
    reason = str(error).splitlines()[0][:200]
    print(
        f"tracking: {_shown_uri(tracking)} does not take metrics ({reason}); they are kept in "
        f"{tracking.spool} and sent when it does",
        file=sys.stderr,
        flush=True,
    )


def _shown_uri(tracking: TrackingConfig) -> str:
    """The server's address without what may be a password."""
    return re.sub(r"//[^/@]*@", "//***@", tracking.uri)


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested configuration as MLflow parameters; anything that may be a secret is left out."""
    flat: dict[str, str] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            flat |= _flatten(item, f"{name}.")
        elif not any(word in key.lower() for word in SECRET_WORDS) or key == "tokenizer":
            flat[name] = re.sub(r"//[^/@\s]*@", "//***@", str(item))[:MAX_PARAM_CHARS]
    return flat


def _git_revision() -> str:
    """The checkout's commit, with + where files differ from it; 'unknown' outside of git."""
    folder = Path(__file__).parent
    try:
        revision = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return revision.stdout.strip()
