"""What the evaluate tests share: an untrained checkpoint and a configuration of the stage."""

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

import caft
from caft.checkpoint import save_weights, write_manifest
from caft.config import validate
from pipelines.config import TrackingConfig
from pipelines.demo.sample import REGIONS
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.opening import Benchmark, open_benchmark
from pipelines.evaluate.stage import run

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


@dataclass(frozen=True)
class SmallEvaluation:
    """A finished evaluation of a series of two checkpoints and another model, whose captions and
    URLs try to be more than text."""

    output: Path
    labels: tuple[str, str, str]
    tracking: TrackingConfig
    benchmark: Benchmark


HOSTILE = (
    "<script>alert(1)</script> A dog & a cat </details></body>",
    "<img src=x onerror=alert(2)> \"'><svg onload=alert(3)> {{ 7 * 7 }} {% raw %}",
)
HOSTILE_END = "#\"'><b onclick=alert(4)>"  # of every URL


@pytest.fixture(scope="session")
def small_evaluation(sample, dataset_folder, make_checkpoint, tmp_path_factory):
    """Everything a page can show, from one real run over the photographs."""
    folder = tmp_path_factory.mktemp("small")
    for step in (10, 20):
        torch.manual_seed(step)
        place = folder / "train" / "checkpoints" / f"step-{step:08d}"
        make_checkpoint(place, caft.create_model("caft_xs"))
        manifest = json.loads((place / "manifest.json").read_text())
        write_manifest(place, manifest | {"step": step})
    tracking = TrackingConfig(uri=f"sqlite:///{folder / 'mlflow.db'}")
    settings = {
        "checkpoint": [str(folder / "train"), "python:colours_adapter:make_colours"],
        "output": str(folder / "output"),
        "benchmarks": [
            {
                "name": "dci",  # so that published numbers stand beside it
                "dataset": dataset_folder,
                "split": "test_photographs",
                "regions": str(sample.folder / REGIONS),
            }
        ],
        "tracking": tracking.model_dump(),
        "alphas": [0.0, 0.5, 1.0],
        "top_k": 4,
        "bootstrap_samples": 200,
        "controls": {"order": True, "noisy_shares": [0.5, 1.0], "first_sentences": [1, 2]},
        "report": {"images": 2, "sentences": 3, "retrievals": 4},
    }
    config = validate(EvaluateConfig, settings, "test")
    benchmark = open_benchmark(config.benchmarks[0], "test")
    hostile = replace(
        benchmark,
        captions=tuple((*HOSTILE, *sentences) for sentences in benchmark.sentences),
        urls=tuple(url + HOSTILE_END for url in benchmark.urls),
        regions={u + end: r for u, r in benchmark.regions.items() for end in ("", HOSTILE_END)},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.evaluate.stage.open_benchmark", lambda *_: hostile)
        run(config)
    labels = ("step-00000010", "step-00000020", "make_colours")
    return SmallEvaluation(Path(config.output), labels, tracking, hostile)
