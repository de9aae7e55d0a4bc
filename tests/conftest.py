# ruff: noqa: E402  (the environment is set before anything reads it)
"""Shared by all tests: one Ray cluster, one sample behind a real HTTP server, one dataset."""

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.pop("RAY_ADDRESS", None)  # tests bring their clusters themselves
tests_folder = str(Path(__file__).parent)
repository = str(Path(__file__).parents[1])
os.environ["PYTHONPATH"] = os.pathsep.join(
    [repository, tests_folder, *filter(None, [os.environ.get("PYTHONPATH")])]
)

import pytest
from hypothesis import settings
from moto.server import ThreadedMotoServer
from stage_support import S3_BUCKET, s3_environment
from xdist.scheduler import LoadScopeScheduling

from caft.config import load_config
from pipelines.config import TrackingConfig
from pipelines.data.config import DataConfig
from pipelines.demo.sample import LISTS, write_sample
from pipelines.demo.server import make_server

settings.register_profile("repository", deadline=None)
settings.load_profile("repository")


# Files that take minutes: first, so that none is left alone at the end.
LONGEST = ("test_stage", "test_recovery", "test_exactness", "test_submit")
# Files that share what takes long to make: on one process too.
TOGETHER = {"test_telemetry": "watched run", "test_held_out": "watched run"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In what order files start."""

    def rank(item: pytest.Item) -> int:
        name = item.path.stem
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=rank)


class ByFile(LoadScopeScheduling):
    """Tests of a file run on one process, which makes what they share once."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return TOGETHER.get(Path(file).stem, file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)


@dataclass
class Sample:
    folder: Path
    base_url: str


@pytest.fixture(scope="session")
def ray_cluster():
    import ray

    from pipelines.train.__main__ import WORKER_ENVIRONMENT

    variables = {"env_vars": WORKER_ENVIRONMENT}
    ray.init("local", num_cpus=4, include_dashboard=False, runtime_env=variables)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def sample(tmp_path_factory) -> Sample:
    """96 training and 24 test scenes with faults and photographs, served on loopback."""
    folder = tmp_path_factory.mktemp("sample")
    server = make_server(folder, 0)
    base_url = f"http://127.0.0.1:{server.server_port}"
    write_sample(folder, base_url, train_scenes=96, test_scenes=24)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Sample(folder, base_url)
    server.shutdown()


@pytest.fixture
def bucket(tmp_path, monkeypatch) -> str:
    """An empty place in a bucket of a real S3 server, which this process's environment names."""
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    s3_environment(monkeypatch, f"http://{host}:{port}")
    yield f"s3://{S3_BUCKET}/{tmp_path.name}"  # all servers of a process share their buckets
    server.stop()


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path) -> str:
    """A folder that is not there yet, and one in a bucket."""
    if request.param == "bucket":
        return request.getfixturevalue("bucket")
    return str(tmp_path / "folder")


@pytest.fixture
def tracking(tmp_path) -> TrackingConfig:
    return tracking_in(tmp_path)


def tracking_in(folder: Path) -> TrackingConfig:
    return TrackingConfig(uri=f"sqlite:///{folder / 'mlflow.db'}")


@pytest.fixture(scope="session")
def make_data_config(sample, tmp_path_factory):
    """Data configurations on the served sample: make_data_config(output, **changes)."""
    recipe = Path(__file__).parents[1] / "configs" / "data" / "demo.yaml"
    paths = [f"sources.{n}.path={sample.folder / name}.csv" for n, name in enumerate(LISTS)]

    def make(output: str, *overrides: str) -> DataConfig:
        tracking = tracking_in(tmp_path_factory.mktemp("tracking"))
        base = [*paths, f"output={output}", "chunk_rows=60", "download.timeout_s=2"]
        base += ["download.retries=0", "row_group_rows=16"]
        base.append(f"tracking.uri={tracking.uri}")
        return load_config(DataConfig, recipe, [*base, *overrides])

    return make


@pytest.fixture(scope="session")
def dataset_folder(ray_cluster, make_data_config, tmp_path_factory) -> str:
    """The served sample as a finished dataset."""
    from pipelines.data.stage import run

    output = str(tmp_path_factory.mktemp("dataset") / "sample")
    run(make_data_config(output))
    return output
