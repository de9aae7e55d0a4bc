"""What the evaluate tests share: an untrained checkpoint and a configuration of the stage."""

import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

import caft
from caft.checkpoint import save_weights, write_manifest
from pipelines.demo.sample import REGIONS

TRAIN_RUN = "7a1e" * 8


@pytest.fixture(scope="session")
def make_checkpoint():
    """A function that writes a model as a finished checkpoint folder."""

    def make(folder, model):
        save_weights(model, folder)
        write_manifest(folder, {"step": 7, "mlflow_run_id": TRAIN_RUN, "metrics": {}})
        return folder

    return make


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, make_checkpoint):
    """A checkpoint folder of an untrained caft_xs."""
    torch.manual_seed(0)
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), caft.create_model("caft_xs"))


@pytest.fixture
def settings(sample, dataset_folder, checkpoint, tracking, tmp_path):
    """A configuration of the stage as a mapping; tests change what they are about."""
    common = {"dataset": dataset_folder, "regions": str(sample.folder / REGIONS)}
    return {
        "checkpoint": str(checkpoint),
        "output": str(tmp_path / "output"),
        "benchmarks": [
            {"name": name, "split": f"test_{name}", **common} for name in ("scenes", "photographs")
        ],
        "tracking": tracking.model_dump(),
        "report": {"images": 2, "retrievals": 2},
    }


@pytest.fixture
def region_lines(sample):
    return [json.loads(line) for line in (sample.folder / REGIONS).read_text().splitlines()]


@pytest.fixture(scope="session")
def split_rows(dataset_folder):
    """Rows of each split, counted from the Parquet files."""
    parts = sorted(Path(dataset_folder).glob("part-*.parquet"))
    return Counter(pq.read_table(parts, columns=["split"])["split"].to_pylist())
