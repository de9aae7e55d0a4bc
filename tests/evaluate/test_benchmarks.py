"""What a benchmark holds, and that every fault of its input is one clear line."""

import json
import shutil

import numpy as np
import pytest

from caft.errors import ConfigError, DataError
from pipelines.evaluate.config import BenchmarkConfig, EvaluateConfig
from pipelines.evaluate.opening import open_benchmark
from pipelines.evaluation_input import evaluation_caption, read_piece


def benchmark_config(settings, n=0, **changes):
    return BenchmarkConfig(**(settings["benchmarks"][n] | changes))


@pytest.mark.parametrize("n", [0, 1])
def test_a_benchmark_holds_the_rows_of_its_split_in_order(settings, split_rows, n):
    count = split_rows[settings["benchmarks"][n]["split"]]
    benchmark = open_benchmark(benchmark_config(settings, n), "benchmarks.0")
    assert len(benchmark.urls) == len(set(benchmark.urls)) == len(benchmark.sentences) == count
    assert all(settings["benchmarks"][n]["name"] in url for url in benchmark.urls)
    assert benchmark.text_to_image == tuple(range(count))  # one caption of each image
    rows = [
        (piece.first + k, row)
        for piece in benchmark.pieces
        for k, row in enumerate(read_piece(benchmark.dataset.path, benchmark.split, piece))
    ]
    assert [position for position, _ in rows] == list(range(count))
    assert tuple(row["url"] for _, row in rows) == benchmark.urls
    for position, row in rows:
        assert benchmark.sentences[position] == tuple(evaluation_caption(row["captions"]))


def test_regions_are_those_of_the_split_and_their_masks_are_read(settings, region_lines):
    benchmark = open_benchmark(benchmark_config(settings), "benchmarks.0")
    assert set(benchmark.regions) == set(benchmark.urls)  # of the photographs it has none
    first = next(line for line in region_lines if line["url"] == benchmark.urls[0])
    assert [region.text for region in benchmark.regions[benchmark.urls[0]]] == [
        region["text"] for region in first["regions"]
    ]
    mask = benchmark.regions[benchmark.urls[0]][0].mask
    assert mask.shape == (96, 96)
    assert 0 < mask.sum() == np.sum(first["regions"][0]["counts"][1::2])


def test_the_first_long_caption_is_read_and_without_one_the_first():
    raw = {"kind": "raw", "sentences": ["a"]}
    short = {"kind": "short", "sentences": ["b"]}
    long = [{"kind": "long", "sentences": [text, text]} for text in "cd"]
    assert evaluation_caption([raw, short, *long]) == ["c", "c"]
    assert evaluation_caption([short, raw]) == ["b"]


def test_other_regions_make_another_fingerprint(settings, tmp_path, region_lines):
    there = open_benchmark(benchmark_config(settings), "benchmarks.0")
    without = open_benchmark(benchmark_config(settings, regions=None), "benchmarks.0")
    moved = tmp_path / "moved"
    shutil.copytree(settings["benchmarks"][0]["dataset"], moved)
    copied = open_benchmark(benchmark_config(settings, dataset=str(moved)), "benchmarks.0")
    assert there.fingerprint == copied.fingerprint != without.fingerprint


def test_a_missing_regions_file_is_named(settings, tmp_path):
    missing = str(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match=r"nowhere\.jsonl: no such regions file"):
        open_benchmark(benchmark_config(settings, regions=missing), "benchmarks.0")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda line: "{not json", "Expecting property name"),
        (lambda line: "[]", "must be integers"),
        (lambda line: json.dumps({"regions": []}), "no 'url'"),
        (lambda line: line.replace('"text"', '"words"'), "no 'text'"),
        (lambda line: line.replace('"counts": [', '"counts": [5, '), "run lengths add up"),
        (lambda line: line.replace('"size": [96, 96]', '"size": [96]'), "size and counts"),
    ],
)
def test_a_broken_regions_line_is_named(settings, tmp_path, region_lines, damage, said):
    lines = [json.dumps(line) for line in region_lines]
    lines[1] = damage(lines[1])
    path = tmp_path / "broken.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"broken\.jsonl: line 2 is not") as caught:
        open_benchmark(benchmark_config(settings, regions=str(path)), "benchmarks.0")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_regions_of_other_images_are_refused(settings, tmp_path, region_lines):
    path = tmp_path / "other.jsonl"
    line = region_lines[0] | {"url": "http://example.org/other.jpg"}
    path.write_text(json.dumps(line))
    with pytest.raises(DataError, match="none of its URLs is in the benchmark"):
        open_benchmark(benchmark_config(settings, regions=str(path)), "benchmarks.0")


def test_a_split_without_rows_is_named(settings):
    with pytest.raises(DataError, match=r"no row has split 'val'.*benchmarks\.3\.split"):
        open_benchmark(benchmark_config(settings, split="val"), "benchmarks.3")


def test_damaged_pages_of_a_part_are_named(settings, tmp_path):
    dataset = tmp_path / "data"
    shutil.copytree(settings["benchmarks"][0]["dataset"], dataset)
    part = dataset / "part-00000.parquet"
    data = bytearray(part.read_bytes())
    middle = len(data) - 8 - int.from_bytes(data[-8:-4], "little")  # the footer stays whole
    data[4:middle] = b"\x00" * (middle - 4)
    part.write_bytes(data)
    with pytest.raises(DataError, match=r"part-00000\.parquet: corrupt Parquet") as caught:
        open_benchmark(benchmark_config(settings, dataset=str(dataset)), "benchmarks.0")
    assert "\n" not in str(caught.value)


def test_a_relative_path_is_refused_inside_a_ray_job(settings, monkeypatch):
    monkeypatch.setenv("RAY_JOB_SUBMISSION_ID", "raysubmit_1")
    with pytest.raises(ConfigError, match=r"benchmarks\.0\.dataset: 'data' is relative"):
        open_benchmark(benchmark_config(settings, dataset="data"), "benchmarks.0")


def test_two_benchmarks_of_one_name_are_refused(settings):
    from caft.config import validate

    settings["benchmarks"][1]["name"] = "scenes"
    with pytest.raises(ConfigError, match="two benchmarks are called 'scenes'"):
        validate(EvaluateConfig, settings, "evaluate.yaml")
