"""Held-out evaluation beside training: right numbers at the right steps, and never in the way."""

import io
import json
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ray
import torch
from PIL import Image
from tests_support import tiny_config

import caft
from caft.captions import even_chunks
from caft.config import load_config
from caft.errors import ConfigError, DataError
from caft.metrics import retrieval_recall
from caft.preprocessing import eval_image
from pipelines.data.dataset import open_dataset
from pipelines.train import evaluations as evaluations_module
from pipelines.train.__main__ import run
from pipelines.train.config import EvaluationConfig, TrainConfig
from pipelines.train.evaluations import Evaluations
from pipelines.train.held_out import draw_held_out, open_held_out

EVALUATED = [4, 8, 12]


def test_scores_are_those_of_the_checkpoints_at_their_steps(watched_run):
    """Also after the run was taken up again: no step is scored or logged twice."""
    output = Path(watched_run.config.output)
    for step in EVALUATED:
        kept = output / f"step-{step:08d}"  # of the first attempt
        folder = kept if kept.exists() else output / "checkpoints" / f"step-{step:08d}"
        for name, value in score_by_hand(folder, watched_run.config.dataset, 20).items():
            history = watched_run.history(f"eval/{name}")
            assert [logged for logged, _ in history] == EVALUATED
            assert dict(history)[step] == pytest.approx(value), (name, step)
    record = json.loads((output / "held_out.json").read_text())
    assert sorted(map(int, record)) == EVALUATED
    for step, seconds in watched_run.history("eval/seconds"):
        assert record[str(step)]["seconds"] == seconds


def test_heat_maps_are_logged_as_pictures_by_step(watched_run):
    files = watched_run.client.list_artifacts(watched_run.first.info.run_id, "images")
    named = {f"{key}+step+{step}" for key in ("heat maps 1", "heat maps 2") for step in EVALUATED}
    assert {Path(file.path).name.split("+timestamp")[0] for file in files} == named


def test_as_many_heat_maps_are_drawn_as_asked_for(watched_config):
    held_out = open_held_out(watched_config)
    model = caft.create_model(tiny_config())
    drawn = [Image.open(io.BytesIO(png)) for png in draw_held_out(model, held_out, 3)]
    assert len(drawn) == 3
    assert all(picture.width > 2 * 112 for picture in drawn)  # the image and what is made of it
    assert draw_held_out(model, held_out, 0) == []


class Logged:
    """What of a tracker an evaluation uses, kept in memory."""

    def __init__(self) -> None:
        self.metrics: list[tuple[int, dict[str, float]]] = []
        self.images: list[tuple[int, str, bytes]] = []

    def log_metrics(self, metrics, step):
        self.metrics.append((step, dict(metrics)))

    def log_image(self, png, key, step):
        self.images.append((step, key, png[1:4]))


@pytest.fixture
def make_evaluations(watched_config, tmp_path):
    def make(logged: Logged, **changes) -> Evaluations:
        evaluation = watched_config.evaluation.model_copy(update=changes)
        config = watched_config.model_copy(update={"evaluation": evaluation})
        held_out = open_held_out(config)
        return Evaluations(evaluation, held_out, tiny_config(), str(tmp_path), logged)

    return make


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def test_a_later_one_replaces_one_that_waits_and_a_failed_one_is_counted(
    ray_cluster, make_evaluations, capsys
):
    logged, weights = Logged(), weights_of(caft.create_model(tiny_config()))
    evaluations = make_evaluations(logged)
    evaluations.submit(1, {})  # no weights: the task fails
    wait_for(lambda: evaluations._waiting is None)
    for step in (2, 3, 4):
        evaluations.submit(step, weights)
    evaluations.close(wait=True)
    assert logged.metrics[0] == (1, {"eval/failed": 1.0})
    assert [step for step, _ in logged.metrics[1:]] == [4]
    assert sorted(evaluations.finished) == [4]
    assert logged.images == [(4, f"heat maps {n}", b"PNG") for n in (1, 2)]
    said = capsys.readouterr().out
    assert "that of step 1 failed (RuntimeError: Error(s) in loading state_dict for CAFT" in said
    assert said.count("is left out for that of step") == 1
    again = make_evaluations(Logged())
    assert again.knows(4)
    assert not again.knows(3)
    assert again.finished == evaluations.finished
    again.close(wait=True)


def test_without_a_free_cpu_it_waits_and_says_so_once(
    ray_cluster, make_evaluations, monkeypatch, capsys
):
    monkeypatch.setattr(evaluations_module, "SAY_AFTER_S", 0.5)
    logged, weights = Logged(), weights_of(caft.create_model(tiny_config()))
    group = ray.util.placement_group([{"CPU": 1.0}])  # one of the four is somebody else's
    assert group.wait(30)
    evaluations = make_evaluations(logged, num_cpus=4)
    evaluations.submit(5, weights)
    time.sleep(2.0)
    assert logged.metrics == []
    ray.util.remove_placement_group(group)
    evaluations.close(wait=True)
    assert [step for step, _ in logged.metrics] == [5]
    said = capsys.readouterr().out
    assert said.count("waiting for 4 free CPUs on one node; training goes on") == 1


def test_without_room_at_the_end_the_run_ends_all_the_same(ray_cluster, make_evaluations, capsys):
    logged = Logged()
    evaluations = make_evaluations(logged, num_gpus=1, wait_s=0.5)
    evaluations.submit(6, weights_of(caft.create_model(tiny_config())))
    evaluations.close(wait=True)
    assert logged.metrics == [(6, {"eval/failed": 1.0})]
    said = capsys.readouterr().out
    assert "step 6 failed (1 free CPUs and 1 GPUs on one node did not come within" in said


def test_a_held_out_set_that_cannot_be_used_starts_no_worker(watched_config, tmp_path):
    def make(**evaluation):
        changes = {"evaluation": EvaluationConfig(**evaluation), "output": str(tmp_path / "run")}
        return watched_config.model_copy(update=changes)

    with pytest.raises(DataError, match=r"no manifest\.json"):
        run(make(dataset=str(tmp_path)))
    with pytest.raises(
        DataError, match=r"no row has split 'dev'; check the key 'evaluation\.split'"
    ):
        run(make(split="dev"))
    with pytest.raises(ConfigError, match=r"evaluation\.split 'train' is the one that is trained"):
        load_config(
            TrainConfig, None, ["dataset=a", "output=b", "evaluation={split: train, dataset: a}"]
        )
    assert not (tmp_path / "run").exists()


def test_the_set_is_the_first_images_of_its_split(watched_config):
    rows = len(rows_of_the_split(watched_config.dataset))
    for images, expected in ((2, 2), (17, 17), (10**6, rows)):
        evaluation = watched_config.evaluation.model_copy(update={"images": images})
        held_out = open_held_out(watched_config.model_copy(update={"evaluation": evaluation}))
        assert held_out.images == expected
        assert held_out.pieces[-1].first < expected
    assert open_held_out(watched_config.model_copy(update={"evaluation": None})) is None


def score_by_hand(checkpoint: Path, dataset: str, images: int) -> dict[str, float]:
    model = caft.load_model(checkpoint).eval()
    rows = rows_of_the_split(dataset)[:images]
    pixels = torch.stack([eval_image(row["image"], 32, "squash") for row in rows])
    chunks = []
    for row in rows:
        long = [caption for caption in row["captions"] if caption["kind"] == "long"]
        sentences = (long or row["captions"])[0]["sentences"]
        chunks += even_chunks(sentences, model.config.text.chunks)
    tokens = model.tokenize(chunks).view(len(rows), model.config.text.chunks, -1)
    with torch.inference_mode():
        features = model(pixels, tokens)
        scores = {"whole": model.score(*features, alpha=0.0), "blended": model.score(*features)}
    own = torch.arange(len(rows))
    return {
        f"{kind}_{name}": value
        for kind, matrix in scores.items()
        for name, value in retrieval_recall(matrix, own).items()
    }


def rows_of_the_split(dataset: str) -> list[dict]:
    opened = open_dataset(dataset)
    parts = [pq.read_table(Path(dataset) / entry.name) for entry in opened.files]
    table = pa.concat_tables(parts)
    return table.filter(pc.equal(table["split"], "test_scenes")).to_pylist()


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
