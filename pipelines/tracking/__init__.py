"""What stages log of their runs: the one door to MLflow.
Stages use Tracker (tracker.py); runs.py makes and finds runs, send.py sends what was recorded."""

from pipelines.tracking.about import About
from pipelines.tracking.lineage import DatasetUse, ModelMade
from pipelines.tracking.tracker import Tracker

__all__ = ["About", "DatasetUse", "ModelMade", "Tracker"]
