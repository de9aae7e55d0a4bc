"""What runs read and make, as MLflow's pages link it: datasets, final models, registered models.
Recorded by tracker.py, sent by send.py."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caft.secrets import masked

LONGEST_DIGEST = 12  # characters: pages show it beside the name, MLflow keeps 36
MODEL_TYPE = "checkpoint"
NOT_IN_NAMES = re.compile(r"[/:.%\"']")  # of logged models
OF_MODELS = ("loss/", "eval/")  # metrics of a training run that its model shows too
CONTEXT = "mlflow.data.context"  # MLflow's own name


@dataclass(frozen=True)
class DatasetUse:
    """A dataset as a run uses it.

    Attributes:
        digest: equal for equal content; the first LONGEST_DIGEST characters are kept.
        source: path or address.
        profile: counts by name, such as rows, images and captions.
        context: what for, in a word.
    """

    name: str
    digest: str
    source: str
    profile: Mapping[str, int]
    context: str


@dataclass(frozen=True)
class ModelMade:
    """A finished checkpoint, whose files stay where they are.

    Attributes:
        params: what decides it.
        register: name of the registered model of which it becomes a version, or None.
    """

    name: str
    step: int
    checkpoint: str
    params: Mapping[str, str]
    register: str | None


def send_datasets(client: Any, run_id: str, uses: Sequence[Mapping[str, Any]]) -> None:
    """Log a run's datasets; one that it has already is left as it is."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = []
    for use in uses:
        scheme = re.match(r"(\w+)://", use["source"])
        kind = scheme[1].replace("https", "http") if scheme else "local"
        key = "url" if kind == "http" else "uri"
        dataset = Dataset(
            use["name"],
            use["digest"][:LONGEST_DIGEST],
            kind,
            json.dumps({key: masked(use["source"])}),
            profile=json.dumps(use["profile"]),
        )
        inputs.append(DatasetInput(dataset, [InputTag(CONTEXT, use["context"])]))
    client.log_inputs(run_id, datasets=inputs)


def send_model(client: Any, run_id: str, made: Mapping[str, Any]) -> None:
    """Make the logged model of a training run, with the run's last metrics, unless it has one; and
    a version of the registered model."""
    from mlflow.entities import LoggedModelOutput, Metric
    from mlflow.entities.logged_model_status import LoggedModelStatus
    from mlflow.models.model import MLMODEL_FILE_NAME
    from mlflow.models.utils import get_external_mlflow_model_spec

    model = find_model(client, run_id)
    if model is None:
        run = client.get_run(run_id)
        model = client.create_logged_model(
            run.info.experiment_id,
            NOT_IN_NAMES.sub("-", made["name"]),
            run_id,
            {
                "mlflow.model.isExternal": "true",
                "checkpoint": masked(made["checkpoint"]),
                "step": str(made["step"]),
            },
            dict(made["params"]),
            MODEL_TYPE,
        )
        with tempfile.TemporaryDirectory() as folder:  # without the file it cannot be registered
            get_external_mlflow_model_spec(model).save(str(Path(folder, MLMODEL_FILE_NAME)))
            client.log_model_artifacts(model.model_id, folder)
    if model.status != LoggedModelStatus.READY:
        run = client.get_run(run_id)
        last = [
            client.get_metric_history(run_id, key)[-1]
            for key in run.data.metrics
            if key.startswith(OF_MODELS)
        ]
        client.log_batch(
            run_id,
            [
                Metric(m.key, m.value, m.timestamp, m.step, model_id=model.model_id, run_id=run_id)
                for m in last
            ],
        )
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, made["step"])])
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    if made["register"]:
        _register(client, run_id, model, made["register"])


def find_model(client: Any, run_id: str) -> Any:
    """The logged model of a training run; None without one, or without the run."""
    from mlflow.exceptions import MlflowException

    try:
        experiment = client.get_run(run_id).info.experiment_id
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None
    found = client.search_logged_models([experiment], f"source_run_id = '{run_id}'", max_results=1)
    return found[0] if found else None


def _register(client: Any, run_id: str, model: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    if not client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'"):
        client.create_model_version(name, model.artifact_location, run_id, model_id=model.model_id)
