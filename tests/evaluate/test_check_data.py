"""`--check-data` says what each benchmark has and lacks; so does its exit code."""

from pathlib import Path

import published_sets
import pytest
import yaml

from caft.config import load_config
from pipelines.config import stage_main
from pipelines.evaluate.check_data import check_data
from pipelines.evaluate.config import EvaluateConfig, PublishedConfig
from pipelines.evaluate.sets import SETS
from pipelines.evaluate.sets.base import Counts
from pipelines.evaluate.stage import run

ROOT = Path(__file__).parents[2]


def checked(tmp_path, benchmarks, capsys):
    """Exit code and output of the command line."""
    path = tmp_path / "evaluate.yaml"
    path.write_text(yaml.safe_dump({"checkpoint": "x", "output": "y", "benchmarks": benchmarks}))
    code = stage_main(EvaluateConfig, run, [str(path), "--check-data"], check_data)
    return code, capsys.readouterr().out


def test_what_is_missing_is_listed_with_where_to_get_it(tmp_path, capsys):
    expected = published_sets.docci(tmp_path / "docci")
    (tmp_path / "docci" / "images" / expected[1][0]).unlink()
    benchmarks = [
        {"name": "docci", "set": "docci", "root": str(tmp_path / "docci")},
        {"name": "urban", "set": "urban_1k", "root": str(tmp_path / "nowhere")},
        {"name": "mine", "dataset": str(tmp_path / "mine")},
    ]
    code, printed = checked(tmp_path, benchmarks, capsys)
    assert code == 1
    docci, urban, mine = (
        printed[printed.index(f"lacking   {name}") :].split("lacking   ")[1]
        for name in ("docci", "urban", "mine")
    )
    assert "images listed: 3, published: 5,000" in docci
    assert "images there: 2, published: 5,000" in docci
    assert f"missing: {tmp_path}/docci/images/{expected[1][0]}" in docci
    assert "get it from https://google.github.io/docci/" in docci
    assert f"{tmp_path}/nowhere: has no caption" in urban
    assert "https://huggingface.co/datasets/BeichenZhang/Urban1k" in urban
    assert "no manifest.json" in mine
    assert "0 of 3 benchmarks are complete" in printed


def test_whole_data_is_said_to_be_complete(tmp_path, capsys, monkeypatch, dataset_folder):
    published_sets.urban(tmp_path / "urban")
    monkeypatch.setitem(SETS["urban_1k"].splits, "test", Counts(3, 3))
    benchmarks = [
        {"name": "urban", "set": "urban_1k", "root": str(tmp_path / "urban")},
        {"name": "mine", "dataset": dataset_folder, "split": "test_scenes"},
    ]
    code, printed = checked(tmp_path, benchmarks, capsys)
    assert code == 0
    assert "2 of 2 benchmarks are complete" in printed
    assert "images there: 3, published: 3" in printed
    assert f"24 images with 24 captions in {dataset_folder}" in printed


def test_many_missing_files_are_counted(tmp_path, capsys):
    lines = [
        {"image_file": f"test_{n}.jpg", "split": "test", "description": "x"} for n in range(25)
    ]
    published_sets.write_lines(tmp_path / "docci_descriptions.jsonlines", lines)
    benchmarks = [{"name": "docci", "set": "docci", "root": str(tmp_path)}]
    _, printed = checked(tmp_path, benchmarks, capsys)
    assert printed.count("missing: ") == 11
    assert "missing: 15 more" in printed


@pytest.mark.parametrize("recipe", ["long_text", "short_text", "zero_shot", "localisation"])
def test_a_recipe_says_what_to_get_where_nothing_is_there(tmp_path, recipe, capsys):
    path = ROOT / "configs" / "evaluate" / f"{recipe}.yaml"
    config = load_config(EvaluateConfig, path, [f"data={tmp_path}"])
    assert check_data(config) == 1
    printed = capsys.readouterr().out
    assert f"0 of {len(config.benchmarks)} benchmarks are complete" in printed
    for benchmark in config.located():
        assert f"lacking   {benchmark.name}\n" in printed
        if isinstance(benchmark, PublishedConfig):
            assert benchmark.root.startswith(str(tmp_path))
            assert f"get it from {SETS[benchmark.set].source}" in printed
