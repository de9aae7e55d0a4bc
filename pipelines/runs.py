"""Runs on the MLflow server: made, found again, read.
A run that begins while the server is away has a stand-in, which becomes a run when it is back."""

from __future__ import annotations

import fcntl
import json
import os
import re
import sys
import tempfile
import uuid
from collections.abc import Collection
from pathlib import Path
from typing import Any

from caft.errors import ConfigError, StorageError
from caft.secrets import masked
from pipelines import user_paths
from pipelines.other_trackers import check_also
from pipelines.tracking_config import TrackingConfig

SQLITE = "sqlite:///"
PENDING = "pending-"
SCHEMES = re.compile(
    r"(https?://|file:|databricks(-uc)?(:|$)|uc(:|$)|(postgresql|mysql|sqlite|mssql)(\+\w+)?:)"
)
REFUSED = ("INVALID_PARAMETER_VALUE", "ENDPOINT_NOT_FOUND")  # MLflow's error codes
BROKEN = (
    "is not a database",
    "unable to open database",
    "Could not parse SQLAlchemy URL",
    "Invalid url",
)
# Of an address: without it a browser that is new to MLflow shows pages for language-model traces.
TRAINING_PAGES = "workflowType=machine_learning"
# MLflow's own tag of an experiment that says the same, heeded where addresses do not.
KIND, TRAINING = "mlflow.experimentKind", "custom_model_development"
STAND_IN = "caft_stand_in"  # tag of a run: what it was called before it was one


def start_run(
    tracking: TrackingConfig, root: Path, stage: str, name: str, run_id: str | None = None
) -> str:
    """A new run, or `run_id` taken up again; with the server away, a stand-in for a new one, which
    this machine makes a run of, as it keeps in `root`."""
    if run_id is None:
        try:
            return _create(tracking, stage, name)
        except ConfigError:
            raise
        except Exception as error:  # any failure of the server or of the way to it
            warn_away(tracking, error)
            run_id = f"{PENDING}{uuid.uuid4().hex}"
    note = root / run_id
    if run_id.startswith(PENDING) and not (note.exists() and note.read_text()):
        note.write_text(json.dumps({"stage": stage, "name": name}))
    return run_id


def check_tracking(tracking: TrackingConfig) -> TrackingConfig:
    """The section for the driver and all of its workers: relative paths made absolute. An address
    that can never work is refused; a server that does not answer now is none of these: what is
    logged waits for it.

    Raises:
        ConfigError: it has no scheme or one that MLflow does not know, it is a file store, its
            database is of another version, the experiment was deleted, or a path would vanish with
            the temporary working directory of a Ray job.
    """
    _require_scheme(tracking)
    changes = {"uri": address_of(tracking)}
    if tracking.uri.startswith(SQLITE):
        require_lasting(tracking)
    if tracking.artifact_root is not None:
        place = user_paths.usable_path(
            tracking.artifact_root, "tracking.artifact_root", folder=True
        )
        changes["artifact_root"] = place
    changes |= check_also(tracking)
    _require_working(tracking)
    return tracking.model_copy(update=changes)


def require_lasting(tracking: TrackingConfig, in_job: bool | None = None) -> None:
    """Refuse a SQLite file that vanishes with the working directory of a Ray job.

    Args:
        in_job: whether this is about a job; None: about this process.

    Raises:
        ConfigError: as described.
    """
    file = tracking.uri.removeprefix(SQLITE)
    copy = next(
        (p for p in _sqlite_file(file).parents if p.name == user_paths.WORKING_COPIES), None
    )
    is_relative = not file.startswith(("/", "~"))
    if copy or (is_relative and (user_paths.in_ray_job() if in_job is None else in_job)):
        raise ConfigError(
            f"tracking.uri: '{tracking.uri}' lies in the temporary working directory of a Ray job "
            "and would vanish with it; set MLFLOW_TRACKING_URI or tracking.uri to a server, or to "
            f"an absolute path as {SQLITE}/shared/mlflow.db that the nodes share"
        )


def _require_working(tracking: TrackingConfig) -> None:
    if not tracking.uri.startswith((SQLITE, "http://", "https://", "file:")):
        return  # MLflow asks other databases for minutes, which the run's own start does anyway
    if tracking.uri.startswith(SQLITE) and not _sqlite_file(tracking.uri).exists():
        _require_writable(tracking)  # it is made by the first run, not by one that is refused
        return
    try:
        experiment = open_client(tracking).get_experiment_by_name(tracking.experiment)
        if experiment is not None:
            _require_active(experiment, tracking)
    except Exception as error:
        if refusal := _for_good(tracking, error):
            raise refusal from None


def _require_scheme(tracking: TrackingConfig) -> None:
    uri, shown = tracking.uri, _shown_uri(tracking)
    if not SCHEMES.match(uri):
        where = f"http://{shown}" if re.match(r"[\w.-]+:\d+(/|$)", uri) else f"{SQLITE}{shown}"
        raise ConfigError(
            f"tracking.uri: '{shown}' names no server or database that MLflow can log to; write "
            f"{where}" + (f", or http://{shown} for a server" if where.startswith(SQLITE) else "")
        )
    if uri.startswith("sqlite:") and (not uri.startswith(SQLITE) or uri == SQLITE):
        raise ConfigError(f"tracking.uri: '{shown}': write {SQLITE}FILE, with three slashes")
    if uri.startswith(SQLITE) and "?" in uri:
        raise ConfigError(
            f"tracking.uri: '{shown}': what follows '?' would not be part of the file's name; "
            "name a file without it"
        )
    if uri.startswith("http") and not re.match(r"https?://[^/?#\s:]+", uri):
        raise ConfigError(f"tracking.uri: '{shown}' names no host; write http://HOST:PORT")


def _require_writable(tracking: TrackingConfig) -> None:
    """Whether the database's folder could be made."""
    file = _sqlite_file(tracking.uri)
    place = next(folder for folder in file.parents if folder.exists())
    if not (place.is_dir() and os.access(place, os.W_OK)):
        raise ConfigError(
            f"tracking.uri: {_shown_uri(tracking)}: cannot be written: {place} is no folder that "
            "this user may write to"
        )


def _require_active(experiment: Any, tracking: TrackingConfig) -> None:
    if experiment.lifecycle_stage != "active":
        number = experiment.experiment_id
        raise ConfigError(
            f"tracking.experiment: '{tracking.experiment}' was deleted; bring it back by `mlflow "
            f"experiments restore --experiment-id {number}`, or choose another name"
        )


def _for_good(tracking: TrackingConfig, error: Exception) -> ConfigError | None:
    """What MLflow would answer at every time, in one line; None of a server that is away."""
    if isinstance(error, ConfigError):
        return error
    words = " ".join(str(error).split())
    if "out-of-date database schema" in words:
        hint = f"back it up, then run `mlflow db upgrade {_shown_uri(tracking)}`"
        return ConfigError(
            f"tracking.uri: {_shown_uri(tracking)} is a database of another version of MLflow; "
            f"{hint}, or name another one"
        )
    if "filesystem tracking backend" in words:
        return ConfigError(
            f"tracking.uri: {_shown_uri(tracking)} is a folder, which MLflow does not log to any "
            f"more; write {SQLITE}FILE, and see `mlflow migrate-filestore` for what is in it"
        )
    if isinstance(error, OSError) and tracking.uri.startswith(SQLITE):
        return ConfigError(f"tracking.uri: {_shown_uri(tracking)}: cannot be written: {error}")
    code = getattr(error, "error_code", None)
    if code in REFUSED or any(sign in words for sign in BROKEN):
        return ConfigError(f"tracking.uri: {_shown_uri(tracking)}: {words[:200]}")
    return None


def real_run_id(tracking: TrackingConfig, root: Path, run_id: str) -> str:
    """By which id the server knows a run. The machine on which a stand-in was begun makes its run;
    all others find that by its tag.

    Raises:
        LookupError: the run is not made yet.
    """
    if not run_id.startswith(PENDING):
        return run_id
    with open(root / run_id, "a+", encoding="utf-8") as note:
        fcntl.flock(note, fcntl.LOCK_EX)  # processes of one machine: one of them makes it
        note.seek(0)
        known = json.loads(note.read() or "{}")
        if "run_id" not in known:
            found = find_run(tracking, run_id)
            if found == run_id:
                if not known:
                    raise LookupError(f"no run has the tag {STAND_IN}={run_id} yet")
                found = _create(tracking, **known, tags={STAND_IN: run_id})
            known = {"run_id": found}
            note.truncate(0)
            note.write(json.dumps(known))
    return str(known["run_id"])


def find_run(tracking: TrackingConfig, run_id: str) -> str:
    """The run that was made of a stand-in; `run_id` itself where it is none, or none is made."""
    if not run_id.startswith(PENDING):
        return run_id
    client = open_client(tracking)
    if (experiment := client.get_experiment_by_name(tracking.experiment)) is None:
        return run_id
    tagged = f"tags.{STAND_IN} = '{run_id}'"
    runs = client.search_runs([experiment.experiment_id], tagged, max_results=1)
    return str(runs[0].info.run_id) if runs else run_id


def read_artifacts(
    tracking: TrackingConfig, run_id: str, names: Collection[str]
) -> dict[str, bytes]:
    """A run's files of these names, at its top or in a folder there, by their paths in the run.

    Raises:
        ConfigError: the server cannot be reached, or the experiment has no such run.
        StorageError: a file that cannot be fetched.
    """
    from mlflow.exceptions import MlflowException

    client = open_client(tracking)
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


def experiment_page(server: str, tracking: TrackingConfig) -> str:
    """Where a browser finds the experiment's runs on an MLflow server that shows `tracking`."""
    experiment = open_client(tracking).get_experiment_by_name(tracking.experiment)
    assert experiment is not None, "a stage makes the experiment before anybody looks for it"
    return f"{server}/#/experiments/{experiment.experiment_id}/runs?{TRAINING_PAGES}"


def run_page(tracking: TrackingConfig, run_id: str) -> str | None:
    """Where a browser finds a run; None where no server shows `tracking`, or it has no such run."""
    from mlflow.exceptions import MlflowException

    server = tracking.page or tracking.uri
    if not server.startswith(("http://", "https://")):
        return None
    try:
        number = open_client(tracking).get_run(run_id).info.experiment_id
    except MlflowException:
        return None
    return f"{server.rstrip('/')}/#/experiments/{number}/runs/{run_id}?{TRAINING_PAGES}"


def _create(
    tracking: TrackingConfig, stage: str, name: str, tags: dict[str, str] | None = None
) -> str:
    try:
        client = open_client(tracking)
        experiment = client.get_experiment_by_name(tracking.experiment)
        if experiment is None:
            location = _artifact_location(tracking)
            experiment_id = client.create_experiment(tracking.experiment, location)
        else:
            _require_active(experiment, tracking)
            experiment_id = experiment.experiment_id
        if experiment is None or KIND not in experiment.tags:
            client.set_experiment_tag(experiment_id, KIND, TRAINING)
    except Exception as error:
        raise (_for_good(tracking, error) or error) from None
    run_name = stage if name == stage else f"{stage} {name}"
    run = client.create_run(experiment_id, tags=tags, run_name=run_name)
    return str(run.info.run_id)


def _artifact_location(tracking: TrackingConfig) -> str | None:
    """Beside the SQLite file, so that artifacts never land relative to a working directory."""
    if tracking.artifact_root is not None:
        return tracking.artifact_root
    if tracking.uri.startswith(SQLITE):
        return (_sqlite_file(tracking.uri).parent / "mlartifacts").as_uri()
    return None


def open_client(tracking: TrackingConfig) -> Any:
    """An MlflowClient that gives up on a dead server within seconds."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow import MlflowClient

    if tracking.uri.startswith(SQLITE):
        _sqlite_file(tracking.uri).parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=address_of(tracking))


def address_of(tracking: TrackingConfig) -> str:
    """The server's or the database's address, the same from every working directory."""
    uri = tracking.uri
    return f"{SQLITE}{_sqlite_file(uri)}" if uri.startswith(SQLITE) else uri


def _sqlite_file(uri: str) -> Path:
    return Path(uri.removeprefix(SQLITE)).expanduser().absolute()


def answers(tracking: TrackingConfig) -> bool:
    """Whether the server can be asked for anything at all."""
    try:
        open_client(tracking).get_experiment_by_name(tracking.experiment)
    except Exception:  # whatever a dead server raises
        return False
    return True


def warn_away(tracking: TrackingConfig, error: Exception) -> None:
    """One line of why metrics have to wait."""
    reason = str(error).splitlines()[0][:200]
    print(
        f"tracking: {_shown_uri(tracking)} does not take metrics ({reason}); they are kept in "
        f"{tracking.spool} and sent when it does",
        file=sys.stderr,
        flush=True,
    )


def _shown_uri(tracking: TrackingConfig) -> str:
    """The server's address without what may be a password."""
    return masked(tracking.uri)
