"""Runs of the stage that build on others, or on several models or captions, or lose workers."""

import csv
import json
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from evaluate_support import mlflow_runs, start

import caft
from caft.captions import even_chunks
from caft.checkpoint import write_manifest
from caft.config import validate
from caft.errors import CAFTError
from caft.metrics import retrieval_recall
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.opening import open_benchmark
from pipelines.evaluation_input import read_piece


def test_a_rerun_with_other_scores_reads_stored_features(settings, tmp_path):
    """Other weights and controls need no pixel: the rerun works with the images out of reach."""
    settings["benchmarks"] = settings["benchmarks"][:1]
    settings["report"] = {"images": 0, "retrievals": 0}
    first = json.loads((start(settings) / "metrics.json").read_text())
    features = tmp_path / "features"  # beside the output
    images = {folder for folder in features.iterdir() if (folder / "aside.safetensors").exists()}
    assert len(images) == 1
    written = {path: path.stat().st_mtime_ns for folder in images for path in folder.iterdir()}

    asked = {
        "alphas": [0.0, 0.3, 1.0],
        "top_k": 4,
        "bootstrap_samples": 200,
        "controls": {
            "order": True,
            "noisy_shares": [1.0],
            "first_sentences": [1, 50],
            "first_tokens": [6],
        },
        "output": str(tmp_path / "again"),
    }
    folder = start(settings | asked)
    again = json.loads((folder / "metrics.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in written} == written
    before, after = (results["benchmarks"]["scenes"] for results in (first, again))
    for name in ("whole_t2i_r1", "blended_i2t_r5", "blended_t2i_median_rank", "miou"):
        assert before[name] == after[name]
    for key, recall in after["alphas"]["0.3"].items():
        assert recall == after[f"blended_{key}"]
        assert after["alphas"]["0"][key] == after[f"whole_{key}"]
    own = {key: after[f"blended_{key}"] for key in after["alphas"]["0"]}
    kept = after["controls"]["first_50_sentences"]  # no caption is as long
    assert kept == own | {"changed_share": 0.0}
    assert after["controls"]["first_sentence_dropped"]["changed_share"] > 0.9
    assert after["controls"]["noisy_1"]["t2i_r1"] < 0.5
    low, high = after["intervals"]["blended_t2i_r5"]
    assert low <= own["t2i_r5"] <= high
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    found = {(row["captions"], row["score"], row["metric"]): row for row in rows}
    assert float(found["as written", "blended", "t2i_r5"]["high"]) == high
    assert ("noisy_1", "blended", "t2i_r1") in found
    assert ("as written", "rerank", "i2t_r1") in found
    _, runs = mlflow_runs(settings)
    logged = next(r for r in runs if r.info.run_id == again["mlflow_run_id"]).data
    assert logged.metrics["scenes/blended_t2i_r5"] == own["t2i_r5"]
    assert "scenes/blended_t2i_median_rank" not in logged.metrics
    tables = json.loads(logged.tags["mlflow.loggedArtifacts"])
    assert {table["path"] for table in tables} == {
        f"tables/{name}.json"
        for name in ("scores", "controls", "control_differences", "alphas", "lengths")
    }


@pytest.mark.slow
def test_killed_encoders_change_nothing_but_time(settings, tmp_path):
    settings["report"] = {"images": 0, "retrievals": 0}
    undisturbed = json.loads((start(settings) / "metrics.json").read_text())["benchmarks"]
    killed, done = [], threading.Event()

    def kill_encoders():
        while not done.is_set() and len(killed) < 2:
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    title = (process.cmdline() or [""])[0]
                    # one at work: its title names a method, as ray::MapWorker(...).submit()
                    if title.startswith("ray::MapWorker") and ").submit" in title:
                        process.kill()
                        killed.append(title)
            done.wait(0.005)

    again = {"output": str(tmp_path / "again"), "features": str(tmp_path / "other_features")}
    killer = threading.Thread(target=kill_encoders)
    killer.start()
    try:
        found = json.loads((start(settings | again) / "metrics.json").read_text())["benchmarks"]
    finally:
        done.set()
        killer.join()
    assert killed
    assert found == undisturbed


def test_a_series_and_another_model_side_by_side(settings, make_checkpoint, tmp_path, capsys):
    """A training run's checkpoints share an MLflow run, each at its step; other models have
    their own. What was finished is not done again."""
    training = tmp_path / "run1"
    for step in (10, 20, 30):
        torch.manual_seed(step)
        folder = training / "checkpoints" / f"step-{step:08d}"
        make_checkpoint(folder, caft.create_model("caft_xs"))
        manifest = json.loads((folder / "manifest.json").read_text())
        write_manifest(folder, manifest | {"step": step})
    (training / "checkpoints" / "step-00000030" / "manifest.json").unlink()  # half written
    settings["benchmarks"] = settings["benchmarks"][1:]
    settings["report"] = {"images": 0, "retrievals": 0}
    settings["checkpoint"] = [str(training), "python:colours_adapter:make_colours"]
    output = start(settings)
    printed = capsys.readouterr().out
    compared = json.loads((output / "comparison.json").read_text())
    assert [(r["model"], r["step"]) for r in compared] == [
        ("caft_xs", 10),
        ("caft_xs", 20),
        ("colours", 0),
    ]
    for label in ("step-00000010", "step-00000020"):
        assert f"photographs {label}" in printed
        assert (output / label / "report.html").exists()
    rows = list(csv.DictReader((output / "comparison.csv").open()))
    assert {row["model"] for row in rows} == {"caft_xs", "colours"}
    client, runs = mlflow_runs(settings)
    assert len(runs) == 2
    series = compared[0]["mlflow_run_id"]
    assert series == compared[1]["mlflow_run_id"] != compared[2]["mlflow_run_id"]
    history = client.get_metric_history(series, "photographs/whole_t2i_r1")
    assert sorted((m.step, m.value) for m in history) == [
        (r["step"], r["benchmarks"]["photographs"]["whole_t2i_r1"]) for r in compared[:2]
    ]
    others = client.get_metric_history(compared[2]["mlflow_run_id"], "photographs/whole_t2i_r1")
    assert [m.step for m in others] == [0]

    # one that was lost is done again, the others are kept
    lost = output / "step-00000010" / "metrics.json"
    kept = output / "step-00000020" / "metrics.json"
    before, time_ns = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    start(settings)
    assert lost.read_bytes() == before
    assert kept.stat().st_mtime_ns == time_ns
    assert len(mlflow_runs(settings)[1]) == 2


def test_one_bad_checkpoint_of_three_fails_its_own_run_alone(settings, capsys):
    """The others are scored, their runs are finished, and a second try does the bad one alone."""
    settings["benchmarks"] = settings["benchmarks"][1:]
    settings["report"] = {"images": 0, "retrievals": 0}
    good = [settings["checkpoint"], "python:colours_adapter:make_colours"]
    settings["checkpoint"] = [good[0], "python:colours_adapter:make_broken", good[1]]
    for tried in (3, 1):
        with pytest.raises(CAFTError, match="no text can be read") as caught:
            start(settings)
        assert "\n" not in str(caught.value)
        told = "make_broken failed: " in capsys.readouterr().out
        assert told == (tried > 1)  # alone, its error is the stage's own last line
        output = Path(settings["output"])
        assert len(list(output.glob("*/metrics.json"))) == 2
        _, runs = mlflow_runs(settings)
        states = {run.data.tags["model"]: run.info.status for run in runs}
        assert states == {"caft_xs": "FINISHED", "colours": "FINISHED", "broken": "FAILED"}
        assert len(runs) == 3


@pytest.mark.slow
def test_several_captions_of_an_image_are_scored_as_such(settings, monkeypatch):
    """Each text looks for its image; an image is found by any of its own."""
    config = validate(EvaluateConfig, settings, "test").benchmarks[1]
    benchmark = open_benchmark(config, "test")
    count = len(benchmark.urls)
    doubled = replace(
        benchmark,
        captions=benchmark.captions + benchmark.captions[: count // 2],
        text_to_image=(*range(count), *range(count // 2)),
    )
    monkeypatch.setattr("pipelines.evaluate.stage.open_benchmark", lambda *_: doubled)
    settings["benchmarks"] = settings["benchmarks"][1:]
    results = json.loads((start(settings) / "metrics.json").read_text())
    found = results["benchmarks"]["photographs"]
    assert (found["images"], found["texts"]) == (count, count + count // 2)
    model = caft.load_model(settings["checkpoint"])
    rows = [
        row
        for piece in benchmark.pieces
        for row in read_piece(benchmark.dataset.path, benchmark.split, piece)
    ]
    with torch.inference_mode():
        images = model.encode_image(torch.stack([model.preprocess(r["image"]) for r in rows]))
        chunks = [c for sentences in doubled.sentences for c in even_chunks(sentences, 4)]
        texts = model.encode_text(model.tokenize(chunks).view(len(doubled.sentences), 4, -1))
    expected = retrieval_recall(model.score(images, texts, 0.3), doubled.text_to_image)
    for key, value in expected.items():
        assert found[f"blended_{key}"] == pytest.approx(value, abs=1e-6), key
