"""The whole stage on a small dataset: numbers, report, MLflow, reruns, and refusals."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import ray
import torch
from evaluate_support import mlflow_runs, start

import caft
from caft.captions import even_chunks
from caft.checkpoint import write_manifest
from caft.config import validate
from caft.errors import CheckpointError, ConfigError, DataError, StorageError
from caft.metrics import binarise, centre_box, mask_iou, retrieval_recall
from caft.transforms import decode_image
from pipelines import storage
from pipelines.config import stage_main
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.opening import open_benchmark
from pipelines.evaluate.stage import run
from pipelines.evaluation_input import read_piece


def files_in(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}


def without_ray(settings, benchmark_settings, alpha):
    """Every number of one benchmark, from the public functions and one batch."""
    model = caft.load_model(settings["checkpoint"])
    config = validate(EvaluateConfig, settings, "test").benchmarks[benchmark_settings]
    benchmark = open_benchmark(config, "test")
    rows = [
        row
        for piece in benchmark.pieces
        for row in read_piece(benchmark.dataset.path, benchmark.split, piece)
    ]
    with torch.inference_mode():
        pixels = torch.stack([model.preprocess(row["image"]) for row in rows])
        images = model.encode_image(pixels)
        chunks = [c for sentences in benchmark.sentences for c in even_chunks(sentences, 4)]
        texts = model.encode_text(model.tokenize(chunks).view(len(rows), 4, -1))
    expected = {}
    for name, weight in (("whole", 0.0), ("blended", alpha)):
        recall = retrieval_recall(model.score(images, texts, weight), range(len(rows)))
        expected |= {f"{name}_{key}": value for key, value in recall.items()}
    ious, boxes = [], []
    for row in rows:
        image = decode_image(row["image"])
        for region in benchmark.regions.get(row["url"], ()):
            heat = caft.localize(model, image, [region.text])[0]
            ious.append(mask_iou(binarise(heat), region.mask))
            boxes.append(mask_iou(centre_box(*region.mask.shape), region.mask))
    expected["miou"] = sum(ious) / len(ious)
    expected["centre_box_miou"] = sum(boxes) / len(boxes)
    return expected


def test_a_run_and_all_that_may_follow_it(settings, split_rows, tmp_path, capsys):
    output = start(settings)
    printed = capsys.readouterr().out
    results = json.loads((output / "metrics.json").read_text())
    scenes, photographs = (results["benchmarks"][name] for name in ("scenes", "photographs"))
    assert scenes["images"] == split_rows["test_scenes"]
    assert photographs["images"] == split_rows["test_photographs"]
    for name, value in without_ray(settings, 0, 0.3).items():
        assert scenes[name] == pytest.approx(value, abs=1e-6), name
    assert scenes["regions"] > 3 * scenes["images"]
    assert "T2I R@1" in printed
    assert f"report: {output / 'report.html'}" in printed

    # MLflow: parameters, metrics at the checkpoint's step, links, files
    dataset = json.loads((Path(settings["benchmarks"][0]["dataset"]) / "manifest.json").read_text())
    linked = {"train_run_id": "7a1e" * 8, "data_run_id": dataset["mlflow_run_id"]}
    client, found = mlflow_runs(settings)
    assert [r.info.run_id for r in found] == [results["mlflow_run_id"]]
    logged = found[0]
    assert logged.info.status == "FINISHED"
    assert logged.data.params["alpha"] == "0.3"
    assert linked.items() <= logged.data.tags.items()
    assert logged.data.tags["checkpoint_fingerprint"] == results["checkpoint_fingerprint"]
    history = client.get_metric_history(logged.info.run_id, "scenes/blended_t2i_r1")
    assert [(m.step, m.value) for m in history] == [(7, scenes["blended_t2i_r1"])]
    assert {"photographs/whole_i2t_r1", "scenes/miou"} <= set(logged.data.metrics)
    per_benchmark = Counter(name.split("/")[0] for name in logged.data.metrics)
    assert max(per_benchmark.values()) <= 12
    files = {file.path for file in client.list_artifacts(logged.info.run_id)}
    assert {"report.html", "metrics.json"} <= files
    file = client.download_artifacts(logged.info.run_id, "tables/scores.json", str(tmp_path))
    table = pd.DataFrame(**json.loads(Path(file).read_text()))
    row = table[(table.benchmark == "scenes") & (table.metric == "t2i_r5")].iloc[0]
    assert row["value"] == scenes[f"{row['score']}_t2i_r5"]
    assert row["low"] <= row["value"] <= row["high"]

    # the same again returns what there is
    before = files_in(output)
    start(settings)
    again = capsys.readouterr().out
    assert again.startswith("evaluate: finished before")
    assert printed[printed.index("\nbenchmark ") :] in again
    assert files_in(output) == before
    assert len(mlflow_runs(settings)[1]) == 1

    # another configuration is refused, and nothing is lost
    with pytest.raises(ConfigError, match=r"alpha: .*holds an evaluation made with 0\.3, here"):
        start(settings | {"alpha": 0.5})
    assert files_in(output) == before

    # a run that was killed before its end is taken up, with the same result
    (output / "metrics.json").unlink()
    (output / "report.html").unlink()
    start(settings)
    assert files_in(output) == before
    assert len(mlflow_runs(settings)[1]) == 1

    page = (output / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:image/webp;base64,|#)', page)
    assert "<script" not in page
    assert page.count("<figcaption><b>Image</b>") == 2 * 2
    assert page.count('class="own"') == 2 * 2 * 2
    for run_id in (*linked.values(), results["mlflow_run_id"]):
        assert run_id in page
    benchmark = open_benchmark(validate(EvaluateConfig, settings, "t").benchmarks[0], "t")
    for region in benchmark.regions[benchmark.urls[0]]:
        assert region.text in page


@pytest.mark.parametrize(("model", "score"), [("clip_xs", "whole"), ("flair_xs", "part")])
def test_a_flat_control_is_scored_localised_and_shown(
    settings, make_checkpoint, tmp_path, capsys, model, score
):
    torch.manual_seed(0)
    folder = make_checkpoint(tmp_path / "control", caft.create_model(model))
    settings["benchmarks"] = settings["benchmarks"][:1]
    output = start(settings | {"checkpoint": str(folder)})
    results = json.loads((output / "metrics.json").read_text())
    scenes = results["benchmarks"]["scenes"]
    assert results["score"] == score
    assert {key.split("_")[0] for key in scenes if key.endswith("_r1")} == {score}
    assert 0 < scenes["miou"] < 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:3:2] == ["scenes", score] for line in lines)
    page = (output / "report.html").read_text()
    assert "36 patches.</p>" in page
    assert "superpixel" not in page
    assert "lended" not in page
    assert page.count("<figcaption><b>36</b> patches") == 2
    looked = "the attention" if score == "part" else "the cosine"
    assert f"Each heat map is {looked}" in page


@pytest.mark.slow
def test_a_model_of_crops_is_shown_crops_but_for_regions(settings, make_checkpoint, tmp_path):
    """Regions may lie outside a crop, so benchmarks of regions show the whole picture."""
    folders = {}
    for rule in ("crop", "squash"):
        config = caft.config.load_model_config({"base": "caft_xs", "image": {"preprocess": rule}})
        torch.manual_seed(0)
        folders[rule] = make_checkpoint(tmp_path / rule, caft.create_model(config))
    photographs = settings["benchmarks"][1]
    plain = {key: value for key, value in photographs.items() if key != "regions"}
    settings |= {
        "checkpoint": str(folders["crop"]),
        "benchmarks": [photographs, plain | {"name": "plain"}],
    }
    output = start(settings)
    results = json.loads((output / "metrics.json").read_text())
    assert {n: d["pictures"] for n, d in results["datasets"].items()} == {
        "photographs": "squash",
        "plain": "crop",
    }
    page = (output / "report.html").read_text()
    assert "the whole picture, resized to a square (preprocess: squash)" in page
    assert "centre cropped, as published (preprocess: crop)" in page
    found = results["benchmarks"]
    squashed = without_ray(settings | {"checkpoint": str(folders["squash"])}, 0, 0.3)
    for name, value in squashed.items():
        assert found["photographs"][name] == pytest.approx(value, abs=1e-6), name
    cropped = without_ray(settings, 0, 0.3)
    for name in (name for name in cropped if "2" in name):
        assert found["plain"][name] == pytest.approx(cropped[name], abs=1e-6), name
    assert "miou" not in found["plain"]


def test_a_diverged_checkpoint_is_named(settings, make_checkpoint, tmp_path):
    model = caft.create_model("caft_xs")
    with torch.no_grad():
        model.coarse_projection.fill_(torch.nan)
    folder = make_checkpoint(tmp_path / "diverged", model)
    with pytest.raises(CheckpointError, match="features that are not numbers"):
        start(settings | {"checkpoint": str(folder)})
    assert not (Path(settings["output"]) / "metrics.json").exists()
    assert [r.info.status for r in mlflow_runs(settings)[1]] == ["FAILED"]


def test_an_undecodable_image_is_one_line(settings, tmp_path):
    dataset = tmp_path / "data"
    shutil.copytree(settings["benchmarks"][0]["dataset"], dataset)
    manifest = json.loads((dataset / "manifest.json").read_text())
    entry = manifest["files"][-1]
    table = pq.read_table(dataset / entry["name"])
    rows = table.to_pylist()
    rows[-1]["image"] = b"no image"
    pq.write_table(table.from_pylist(rows, table.schema), dataset / entry["name"])
    entry["bytes"] = (dataset / entry["name"]).stat().st_size
    (dataset / "manifest.json").write_text(json.dumps(manifest))
    photographs = settings["benchmarks"][1] | {"dataset": str(dataset)}  # they come last
    settings["benchmarks"] = [photographs]
    with pytest.raises(DataError, match=r"\.jpg: image of 8 bytes cannot be decoded") as caught:
        start(settings)
    assert "\n" not in str(caught.value)


def remove(path):
    path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("which", "file", "damage", "error", "said"),
    [
        ("checkpoint", "manifest.json", remove, CheckpointError, "no manifest.json"),
        ("checkpoint", "model.safetensors", cut, CheckpointError, "model.safetensors: damaged"),
        ("data", "manifest.json", remove, DataError, "no manifest.json"),
        ("data", "part-00000.parquet", cut, DataError, "part-00000.parquet: corrupt Parquet"),
        ("data", "part-00001.parquet", remove, DataError, "part-00001.parquet: missing"),
    ],
)
def test_damaged_input_stops_it_before_anything_starts(
    settings, tmp_path, which, file, damage, error, said
):
    folder = tmp_path / which
    data = which == "data"
    shutil.copytree(settings["benchmarks"][1]["dataset"] if data else settings[which], folder)
    damage(folder / file)
    if data:
        settings["benchmarks"][1]["dataset"] = str(folder)
    else:
        settings[which] = str(folder)
    refused(settings, error, said)


def test_a_checkpoint_of_another_configuration_stops_it(settings, tmp_path, make_checkpoint):
    folder = make_checkpoint(tmp_path / "other", caft.create_model("caft_xs"))
    config = (folder / "config.yaml").read_text().replace("embed_dim: 256", "embed_dim: 128")
    (folder / "config.yaml").write_text(config)
    write_manifest(folder, json.loads((folder / "manifest.json").read_text()))
    refused(settings | {"checkpoint": str(folder)}, CheckpointError, "does not fit")


def test_missing_regions_stop_it(settings):
    settings["benchmarks"][1]["regions"] = "/nowhere/regions.jsonl"
    refused(settings, DataError, "/nowhere/regions.jsonl: no such regions file")


def test_a_full_disk_stops_it(settings, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    refused(settings, StorageError, "MiB needed")


def refused(settings, error, said):
    """One line, no output, no MLflow database, and Ray as it was."""
    running = ray.is_initialized()
    with pytest.raises(error) as caught:
        start(settings)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path(settings["output"]).exists()
    assert not Path(settings["tracking"]["uri"].removeprefix("sqlite:///")).exists()
    assert ray.is_initialized() == running


def test_a_single_weights_file_can_be_scored(settings):
    settings["benchmarks"] = settings["benchmarks"][1:]
    del settings["benchmarks"][0]["regions"]
    settings |= {"report": {"images": 0, "retrievals": 0}}
    folder = start(settings)
    single = settings | {
        "checkpoint": str(Path(settings["checkpoint"]) / "model.safetensors"),
        "output": str(folder.with_name("single")),
    }
    results = [storage.read_json(f"{path}/metrics.json") for path in (folder, start(single))]
    assert results[0]["benchmarks"] == results[1]["benchmarks"]
    assert "miou" not in results[0]["benchmarks"]["photographs"]
    assert results[1]["step"] == 0


def test_the_command_line_prints_one_line_and_fails(settings, tmp_path, capsys):
    config = Path(__file__).parents[2] / "configs" / "evaluate" / "demo.yaml"
    code = stage_main(EvaluateConfig, run, [str(config), f"checkpoint={tmp_path}", "output=/x"])
    assert code == 2
    assert capsys.readouterr().err == (
        f"CheckpointError: {tmp_path}: no manifest.json, so this is no finished checkpoint; "
        "use an earlier one\n"
    )
    assert stage_main(EvaluateConfig, run, [str(config), "alpah=0.3"]) == 2
    assert "alpah: unknown key" in capsys.readouterr().err
