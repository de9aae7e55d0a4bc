"""Workers with a tracking server need mlflow-skinny alone, not what its server needs."""

import os
import re
import subprocess
import sys
from importlib.metadata import requires

from mlflow import MlflowClient
from mlflow_support import free_port, start_server

# Of what MLflow asks for and mlflow-skinny does not, these come with other packages of the stages.
OTHERWISE = {"aiohttp", "numpy", "pandas", "pyarrow", "scipy"}
IMPORTED_AS = {"scikit-learn": "sklearn", "flask-cors": "flask_cors"}
PROGRAM = """
import sys
from importlib.machinery import PathFinder
blocked = set(sys.argv[2].split())
class Without:
    find_distributions = PathFinder.find_distributions
    invalidate_caches = PathFinder.invalidate_caches
    def find_spec(name, path=None, target=None):
        if name not in blocked:
            return PathFinder.find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Without
from pipelines.config import StageConfig, TrackingConfig
from pipelines.tracking import About, EventLog, Tracker
tracking = TrackingConfig(uri=sys.argv[1], experiment="skinny")
log = EventLog(sys.argv[3], "train")
config = StageConfig(tracking=tracking)
with Tracker.start(tracking, About("train", "tiny", "A test."), config, log) as tracker:
    tracker.log_metrics({"loss/total": 2.0}, step=1)
    tracker.log_table([{"a": 1}], "rows")
    tracker.set_tags({"kind": "test"})
print(tracker.run_id)
"""


def names_of(distribution: str) -> set[str]:
    lines = [line for line in requires(distribution) or [] if "extra" not in line]
    return {re.split(r"[ ;<>=\[!~(]", line)[0].lower().replace("_", "-") for line in lines}


def test_a_run_is_logged_without_what_mlflow_s_server_needs(tmp_path):
    more = names_of("mlflow") - names_of("mlflow-skinny") - OTHERWISE
    more -= {"mlflow-skinny", "mlflow-tracing"}
    assert {"flask", "sqlalchemy", "scikit-learn"} <= more
    blocked = [IMPORTED_AS.get(name, name) for name in sorted(more)] + ["mlflow.server"]
    port = free_port()
    server = start_server(tmp_path, port)
    try:
        uri = f"http://127.0.0.1:{port}"
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM, uri, " ".join(blocked), str(tmp_path / "out")],
            env=os.environ, capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        found = MlflowClient(uri).get_run(run.stdout.split()[-1])
        assert found.info.status == "FINISHED"
        assert found.data.metrics == {"loss/total": 2.0}
        assert found.data.tags["kind"] == "test"
        assert "tables/rows.json" in found.data.tags["mlflow.loggedArtifacts"]
    finally:
        server.terminate()
        server.wait(30)
