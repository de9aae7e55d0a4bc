"""What stages log of their runs: the one door to MLflow.
Stages use Tracker and EventLog; runs.py makes and finds runs, upload.py sends what was logged."""

from pipelines.tracking.about import About
from pipelines.tracking.events import EventLog
from pipelines.tracking.lineage import DatasetUse, ModelMade
from pipelines.tracking.tracker import Tracker
from pipelines.tracking.upload import send_rest

__all__ = ["About", "DatasetUse", "EventLog", "ModelMade", "Tracker", "send_rest"]
