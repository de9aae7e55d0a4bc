"""What each kind of event becomes on an MLflow server; sending one again changes nothing there.
Called by upload.py with what a log holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from pipelines import storage
from pipelines.runs import PARENT, TRAINING_PAGES, find_run, is_active
from pipelines.tracking.about import description_with_links
from pipelines.tracking.lineage import find_model, send_datasets, send_model
from pipelines.tracking_config import TrackingConfig

LATER = {"file", "model"}  # kinds of events that need the artifact store
# MLflow's own names.
DESCRIPTION, SHOWN_ARTIFACTS = "mlflow.note.content", "mlflow.loggedArtifacts"


def send_event(
    client: Any,
    tracking: TrackingConfig,
    run_id: str,
    output: str,
    event: Mapping[str, Any],
    instead_of: str | None,
) -> None:
    """Send one event of a run.

    Args:
        output: where the files are that the event names.
        instead_of: the run that this one was made in place of.

    Raises:
        LookupError: a file that is not there, or not in the output.
        MlflowException, Exception: of the server, or of the way to it.
    """
    from mlflow.entities import Metric, Param, RunTag

    if "metrics" in event:
        of = event.get("of", {})
        about = find_run(tracking, of["run_id"]) if "run_id" in of else None
        model = find_model(client, about) if about else None
        more = {"run_id": run_id, "model_id": model.model_id} if model else {}
        if "dataset" in of:
            more |= {"dataset_name": of["dataset"][0], "dataset_digest": of["dataset"][1]}
        metrics = [
            Metric(name, float(value), event["time_ms"], event["step"], **more)
            for name, value in event["metrics"].items()
        ]
        client.log_batch(run_id, metrics=metrics)
    elif "params" in event:
        known = client.get_run(run_id).data.params  # a run that is resumed keeps its first ones
        params = [Param(k, v) for k, v in event["params"].items() if k not in known]
        for start in range(0, len(params), 100):
            client.log_batch(run_id, params=params[start : start + 100])
    elif "tags" in event:
        client.log_batch(run_id, tags=[RunTag(k, str(v)) for k, v in event["tags"].items()])
    elif "description" in event:
        links = {stage: find_run(tracking, run) or run for stage, run in event["links"].items()}
        tags = {PARENT if k == "parent" else f"{k}_run_id": run for k, run in links.items()}
        shown = {stage: _link(client, run) for stage, run in links.items()}
        tags[DESCRIPTION] = description_with_links(event["description"], shown, instead_of)
        client.log_batch(run_id, tags=[RunTag(*item) for item in tags.items()])
    elif "datasets" in event:
        send_datasets(client, run_id, event["datasets"])
    elif "model" in event:
        send_model(client, run_id, event["model"])
    elif "file" in event:
        name, path = PurePosixPath(event["file"]), storage.join(output, event["file"])
        if name.is_absolute() or ".." in name.parts or not storage.exists(path):
            raise LookupError(f"{path} is no file of the output")  # a stranger may have written it
        with storage.opened(path) as file:
            client.log_artifact(run_id, str(file), event["folder"])
        if event.get("is_table"):
            _show_table(client, run_id, f"{event['folder']}/{name.name}")
    elif "status" in event:
        is_running = event["status"] == "RUNNING"
        (client.update_run if is_running else client.set_terminated)(run_id, event["status"])


def _show_table(client: Any, run_id: str, path: str) -> None:
    """Have MLflow's pages show an artifact as a table."""
    known = json.loads(client.get_run(run_id).data.tags.get(SHOWN_ARTIFACTS, "[]"))
    entry = {"path": path, "type": "table"}
    if entry not in known:
        client.set_tag(run_id, SHOWN_ARTIFACTS, json.dumps([*known, entry]))


def _link(client: Any, run_id: str) -> str:
    """A run by its name, as MLflow's pages link to it; its id where this server has no such run."""
    if not is_active(client, run_id):
        return f"`{run_id}`"
    run = client.get_run(run_id)
    place = f"#/experiments/{run.info.experiment_id}/runs/{run_id}?{TRAINING_PAGES}"
    return f"[{run.info.run_name}]({place})"
