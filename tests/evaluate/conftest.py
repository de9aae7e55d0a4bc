"""A small dataset made by the data stage's own steps from files on a loopback server."""

import json
import threading

import pytest
import torch

import caft
from caft.checkpoint import save_weights, write_manifest
from pipelines import storage
from pipelines.data.config import DataConfig
from pipelines.data.dataset import MANIFEST
from pipelines.data.sources import plan_chunks
from pipelines.data.stage import build_manifest, process_chunk
from pipelines.demo.sample import REGIONS, write_sample
from pipelines.demo.server import make_server

RUNS = {"data": "da7a" * 8, "train": "7a1e" * 8}


@pytest.fixture(scope="session")
def runs():
    """The MLflow runs that made the dataset and the checkpoint."""
    return RUNS


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """Folder with `data` (20 scenes and 16 photographs) and `regions.jsonl`."""
    folder = tmp_path_factory.mktemp("evaluate")
    served = folder / "sample"
    served.mkdir()
    server = make_server(served, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    write_sample(served, f"http://127.0.0.1:{server.server_address[1]}", 1, 20)
    config = DataConfig(
        sources=[
            {"name": name, "path": str(served / f"{name}_test.csv"), "split": f"test_{name}"}
            for name in ("scenes", "photographs")
        ],
        output=str(folder / "data"),
        chunk_rows=15,
        row_group_rows=4,
        download={"allow_private_hosts": ["127.0.0.1"]},
        image={"max_side_px": 200},
    )
    plan = plan_chunks(config)
    receipts = [process_chunk({"chunk": n}, config) for n in range(plan["chunks"])]
    server.shutdown()
    server.server_close()
    manifest = build_manifest(config, plan, receipts, RUNS["data"])
    assert manifest["counts"]["kept"] == 36
    storage.write_json(storage.join(config.output, MANIFEST), manifest)
    (served / REGIONS).rename(folder / REGIONS)
    return folder


@pytest.fixture(scope="session")
def make_checkpoint():
    """A function that writes a model as a finished checkpoint folder."""

    def make(folder, model):
        save_weights(model, folder)
        write_manifest(folder, {"step": 7, "mlflow_run_id": RUNS["train"], "metrics": {}})
        return folder

    return make


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, make_checkpoint):
    """A checkpoint folder of an untrained caft_xs."""
    torch.manual_seed(0)
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), caft.create_model("caft_xs"))


@pytest.fixture
def settings(sample, checkpoint, tmp_path):
    """A configuration of the stage as a mapping; tests change what they are about."""
    regions = str(sample / REGIONS)
    return {
        "checkpoint": str(checkpoint),
        "output": str(tmp_path / "output"),
        "benchmarks": [
            {
                "name": name,
                "dataset": str(sample / "data"),
                "split": f"test_{name}",
                "regions": regions,
            }
            for name in ("scenes", "photographs")
        ],
        "tracking": {
            "uri": f"sqlite:///{tmp_path / 'mlflow.db'}",
            "spool": str(tmp_path / "spool"),
        },
        "report": {"images": 2, "retrievals": 2},
    }


@pytest.fixture
def region_lines(sample):
    return [json.loads(line) for line in (sample / REGIONS).read_text().splitlines()]
