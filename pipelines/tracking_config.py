"""Where MLflow runs go: the section that every stage's configuration has.
Read by config.py for the command line and by runs.py for the server."""

from __future__ import annotations

import os

from pydantic import Field

from caft.config import Config
from caft.overrides import argument


class TrackingConfig(Config):
    """Where MLflow runs go. Credentials come from MLflow's environment variables alone."""

    uri: str = Field(
        default_factory=lambda: os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///runs/mlflow.db"),
        description="by default MLFLOW_TRACKING_URI, or sqlite:///runs/mlflow.db",
    )
    experiment: str = "caft"
    artifact_root: str | None = Field(
        None, description="new experiments keep artifacts here; None: the server's default"
    )
    spool: str = Field(
        "~/.local/state/caft/mlflow-spool",
        description="each machine keeps here what it could not send yet",
    )
    parent_run_id: str | None = Field(None, description="run that a new one is shown below")

    def as_arguments(self) -> list[str]:
        """As `key=value` for the command line of another stage."""
        known = self.model_dump(mode="json", exclude_none=True)
        return [argument(f"tracking.{key}", value) for key, value in known.items()]
