"""Where MLflow runs go: the section that every stage's configuration has.
Read by config.py for the command line and by runs.py for the server."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field

from caft.config import Config
from caft.overrides import argument


def _model_name(name: str) -> str:
    if not name.strip() or "/" in name or ":" in name:
        raise ValueError(f"'{name}' is no name of a registered model: leave out '/' and ':'")
    return name


class TrackingConfig(Config):
    """Where MLflow runs go. Credentials come from MLflow's environment variables alone."""

    model_config = ConfigDict(serialize_by_alias=True)

    uri: str = Field(
        default_factory=lambda: os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///runs/mlflow.db"),
        description="by default MLFLOW_TRACKING_URI, or sqlite:///runs/mlflow.db",
    )
    experiment: str = "caft"
    page: str | None = Field(
        None,
        description="address at which a browser shows the runs, for links in reports; None: the "
        "uri, where that is http",
    )
    artifact_root: str | None = Field(
        None, description="new experiments keep artifacts here; None: the server's default"
    )
    parent_run_id: str | None = Field(None, description="run that a new one is shown below")

    register_model: Annotated[str, AfterValidator(_model_name)] | None = Field(
        None,
        alias="register",
        description="registered model of MLflow of which each final checkpoint becomes a version",
    )

    also: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        (), description="where runs are shown beside MLflow"
    )
    also_folder: str = Field(
        "~/.local/state/caft/also",
        description="what TensorBoard reads, and W&B's runs before they are sent",
    )

    def as_arguments(self) -> list[str]:
        """As `key=value` for the command line of another stage."""
        known = self.model_dump(mode="json", exclude_none=True)
        return [argument(f"tracking.{key}", value) for key, value in known.items()]
