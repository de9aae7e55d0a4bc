"""Runs on the MLflow server: made, found again by the key that their client made, read.
Under tracking/upload.py, and for stages that check their tracking server or read runs from it."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from caft.errors import ConfigError, StorageError
from caft.secrets import masked
from pipelines import user_paths
from pipelines.other_trackers import check_also
from pipelines.tracking_config import TrackingConfig

SQLITE = "sqlite:///"
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
# Tags of runs: its key; the run it was made in place of; and what earlier versions called one that
# they began while no server answered.
PARENT = "mlflow.parentRunId"  # MLflow's own
KEY, INSTEAD_OF, STAND_IN = "caft_run_key", "caft_instead_of", "caft_stand_in"


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
    uri, shown = tracking.uri, shown_uri(tracking)
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
            f"tracking.uri: {shown_uri(tracking)}: cannot be written: {place} is no folder that "
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
        hint = f"back it up, then run `mlflow db upgrade {shown_uri(tracking)}`"
        return ConfigError(
            f"tracking.uri: {shown_uri(tracking)} is a database of another version of MLflow; "
            f"{hint}, or name another one"
        )
    if "filesystem tracking backend" in words:
        return ConfigError(
            f"tracking.uri: {shown_uri(tracking)} is a folder, which MLflow does not log to any "
            f"more; write {SQLITE}FILE, and see `mlflow migrate-filestore` for what is in it"
        )
    if isinstance(error, OSError) and tracking.uri.startswith(SQLITE):
        return ConfigError(f"tracking.uri: {shown_uri(tracking)}: cannot be written: {error}")
    code = getattr(error, "error_code", None)
    if code in REFUSED or any(sign in words for sign in BROKEN):
        return ConfigError(f"tracking.uri: {shown_uri(tracking)}: {words[:200]}")
    return None


def find_run(tracking: TrackingConfig, name: str) -> str | None:
    """The id of the run that stages know by `name`: its key, which its client made, or its id, also
    on a server that it was deleted from or never was on, where another was made in its place. None
    where the server has none of these."""
    if not re.fullmatch(r"[\w-]{1,64}", name):  # of a manifest that somebody else wrote
        return None
    client = open_client(tracking)
    if is_active(client, name):
        return name
    if (experiment := client.get_experiment_by_name(tracking.experiment)) is None:
        return None
    for tag in (KEY, INSTEAD_OF, STAND_IN):
        if runs := _tagged(client, experiment.experiment_id, tag, name):
            return runs[0]
    return None


def is_active(client: Any, run_id: str) -> bool:
    """Whether the server has a run of this id that is not deleted."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return False


def create_run(tracking: TrackingConfig, name: str, key: str, instead_of: str | None) -> str:
    """A new run with `key` as its tag, in an experiment that is made if it is not there.

    Raises:
        ConfigError: the server would refuse it at every time.
    """
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
    tags = {KEY: key} | ({INSTEAD_OF: instead_of} if instead_of else {})
    made = str(client.create_run(experiment_id, tags=tags, run_name=name).info.run_id)
    first, *_ = _tagged(client, experiment_id, KEY, key) or [made]
    if first != made:  # another process made it in the same moment
        client.delete_run(made)
    for name in filter(None, (key, instead_of)):  # runs below it, which were there before it
        for child in _tagged(client, experiment_id, PARENT, name):
            client.set_tag(child, PARENT, first)
    return first


def _tagged(client: Any, experiment_id: str, tag: str, value: str) -> list[str]:
    """Ids of the runs with this tag that are not deleted, the oldest first."""
    runs = client.search_runs([experiment_id], f"tags.{tag} = '{value}'", max_results=1000)
    return [r.info.run_id for r in sorted(runs, key=lambda r: (r.info.start_time, r.info.run_id))]


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
        run_id = find_run(tracking, run_id) or run_id
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
        raise ConfigError(f"tracking.uri: {shown_uri(tracking)}: run {run_id}: {reason}") from None
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


def shown_uri(tracking: TrackingConfig) -> str:
    """The server's address without what may be a password."""
    return masked(tracking.uri)
