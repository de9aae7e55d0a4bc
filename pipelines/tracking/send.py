"""Sends recorded events to an MLflow server, in order and each once.
Called by tracker.py for its own spool and for those that earlier processes left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines.config import TrackingConfig
from pipelines.runs import TRAINING_PAGES, find_run, open_client, real_run_id
from pipelines.tracking.about import description_with_links
from pipelines.tracking.lineage import find_model, send_datasets, send_model

EVENTS = "events.jsonl"  # in a spool folder
# MLflow's own names.
PARENT, DESCRIPTION = "mlflow.parentRunId", "mlflow.note.content"
SHOWN_ARTIFACTS = "mlflow.loggedArtifacts"


def read_events(spool: Path) -> list[str]:
    path = spool / EVENTS
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def send_spool(tracking: TrackingConfig, spool: Path) -> int:
    """Send the events of one spool folder that were not sent yet, in order; how many are sent."""
    client = open_client(tracking)
    mark = spool / "sent"
    sent = int(mark.read_text()) if mark.exists() else 0
    for line in read_events(spool)[sent:]:
        event = json.loads(line)
        _send_event(client, tracking, spool.parent, event)
        sent += 1
        mark.write_text(str(sent))
    return sent


def _send_event(client: Any, tracking: TrackingConfig, root: Path, event: dict[str, Any]) -> None:
    from mlflow.entities import Metric, Param, RunTag

    run_id = real_run_id(tracking, root, event["run_id"])
    if "metrics" in event:
        of = event.get("of", {})
        model = find_model(client, find_run(tracking, of["run_id"])) if of.get("run_id") else None
        more = {"run_id": run_id, "model_id": model.model_id} if model else {}
        if "dataset" in of:
            more |= {"dataset_name": of["dataset"][0], "dataset_digest": of["dataset"][1]}
        metrics = [
            Metric(name, float(value), event["time_ms"], event["step"], **more)
            for name, value in event["metrics"].items()
        ]
        client.log_batch(run_id, metrics=metrics)
    elif "params" in event:
        known = client.get_run(run_id).data.params  # a run taken up again keeps its first ones
        params = [Param(k, v) for k, v in event["params"].items() if k not in known]
        for start in range(0, len(params), 100):
            client.log_batch(run_id, params=params[start : start + 100])
    elif "tags" in event:
        tags = {k: find_run(tracking, str(v)) for k, v in event["tags"].items()}
        if PARENT in tags:  # which is being made, if it is not there yet
            tags[PARENT] = real_run_id(tracking, root, tags[PARENT])
        client.log_batch(run_id, tags=[RunTag(k, v) for k, v in tags.items()])
    elif "description" in event:
        links = {k: _link(client, find_run(tracking, v)) for k, v in event["links"].items()}
        text = description_with_links(event["description"], links)
        client.set_tag(run_id, DESCRIPTION, text)
    elif "datasets" in event:
        send_datasets(client, run_id, event["datasets"])
    elif "model" in event:
        send_model(client, run_id, event["model"])
    elif "artifact" in event:
        client.log_artifact(run_id, event["artifact"], event["folder"])
        if event.get("is_table"):
            _show_table(client, run_id, f"{event['folder']}/{Path(event['artifact']).name}")
    elif "image" in event:
        with Image.open(event["image"]) as picture:
            client.log_image(run_id, picture, key=event["key"], step=event["step"])
    else:
        client.set_terminated(run_id, event["status"])


def _show_table(client: Any, run_id: str, path: str) -> None:
    """Have MLflow's pages show an artifact as a table."""
    known = json.loads(client.get_run(run_id).data.tags.get(SHOWN_ARTIFACTS, "[]"))
    entry = {"path": path, "type": "table"}
    if entry not in known:
        client.set_tag(run_id, SHOWN_ARTIFACTS, json.dumps([*known, entry]))


def _link(client: Any, run_id: str) -> str:
    """A run by its name, as MLflow's pages link to it; its id where this server has no such run."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return f"`{run_id}`"
    place = f"#/experiments/{run.info.experiment_id}/runs/{run_id}?{TRAINING_PAGES}"
    return f"[{run.info.run_name}]({place})"
