"""Estimates: what a sample says of the whole agrees with what the stage then makes of it."""

import csv
import json

import numpy as np
import pytest
from sources_support import image_bytes, tar_bytes, write

from caft.config import to_yaml
from pipelines.data.__main__ import main
from pipelines.data.config import DataConfig, SourceConfig
from pipelines.data.dataset import open_dataset
from pipelines.data.estimate import estimate, predict, wilson
from pipelines.data.probe import Probe, SourceProbe


@pytest.fixture
def written(make_data_config, tmp_path):
    """Writes a configuration on the served sample, with sources of its own; returns its path."""

    def write_config(*overrides, sources=None):
        config = make_data_config(str(tmp_path / "unused"), *overrides)
        if sources is not None:
            config = config.model_copy(update={"sources": tuple(sources)})
        path = tmp_path / "data.yaml"
        path.write_text(to_yaml(config))
        return str(path)

    return write_config


def numbers(config, tmp_path, rows, *overrides, **options):
    file = tmp_path / "estimate.json"
    text = estimate(config, overrides, rows, json_file=str(file), **options)
    return json.loads(file.read_text()), text


def outcomes_of(result):
    return {one["outcome"]: one for one in result["outcomes"]}


def test_the_kept_share_is_within_its_interval(written, dataset_folder, tmp_path):
    dataset = open_dataset(dataset_folder)
    counts = dataset.manifest["counts"]
    result, text = numbers(written(), tmp_path, 150)
    assert result["rows"] == counts["input_rows"]
    assert result["sampled_rows"] == pytest.approx(150, abs=30)
    kept = outcomes_of(result)["kept"]
    # A duplicate is not seen in a sample.
    share = (counts["kept"] + 1) / counts["input_rows"]
    assert kept["share"]["low"] <= share <= kept["share"]["high"]
    assert kept["rows"]["value"] == pytest.approx(kept["share"]["value"] * result["rows"])
    assert sum(one["sampled"] for one in result["outcomes"]) == result["sampled_rows"]
    assert sum(one["share"]["value"] for one in result["outcomes"]) == pytest.approx(1)
    stored = sum(entry.bytes for entry in dataset.files)
    assert result["stored_bytes"]["value"] == pytest.approx(stored, rel=0.4)
    assert result["downloaded_bytes"]["low"] < result["downloaded_bytes"]["high"]
    assert "duplicates across the whole set" in text
    assert "$" not in text
    assert not (tmp_path / "unused").exists()


def test_hours_are_the_larger_of_both_bounds_and_cost_what_is_asked(written, tmp_path):
    result, text = numbers(written(), tmp_path, 80, dollars_per_core_hour=0.05)
    assert result["cpu_hours"]["value"] > 0
    assert {16, 64, 256} <= {one["cores"] for one in result["durations"]}
    for one in result["durations"]:
        hours = one["hours"]["value"]
        bounds = {key: one[f"{key}_bound_hours"]["value"] for key in ("cpu", "task")}
        assert hours == max(bounds.values())
        assert one["bound_by"] == ("CPU" if bounds["cpu"] >= bounds["task"] else "network")
        assert one["dollars"]["value"] == pytest.approx(hours * one["cores"] * 0.05)
    assert "$" in text


def test_sources_of_different_size_count_by_their_size(written, tmp_path, sample):
    with open(sample.folder / "scenes_train.csv", newline="") as stream:
        good = [row for row in csv.DictReader(stream) if "/faults/" not in row["Image Path"]][:90]
    lists = {"large": good, "small": [row | {"Image Path": f"{n}"} for n, row in enumerate(good)]}
    sources = []
    for name, rows in lists.items():
        path = tmp_path / f"{name}.csv"
        count = 40 if name == "small" else 2000
        with open(path, "w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            writer.writerows(
                row | {"Image Path": f"{row['Image Path']}?{n}"}
                for n, row in enumerate((rows * 30)[:count])
            )
        root = sample.base_url + "/scenes/missing" if name == "small" else None
        sources.append(SourceConfig(name=name, path=str(path), image_root=root))
    result, text = numbers(written(sources=sources), tmp_path, 120)
    large, small = result["sources"]
    assert (large["rows"], small["rows"]) == (2000, 40)
    assert (large["sampled"], small["sampled"]) == (118, 40)
    assert large["kept_share"]["value"] == 1
    assert small["kept_share"]["value"] == 0
    found = outcomes_of(result)
    assert found["kept"]["share"]["value"] == pytest.approx(2000 / 2040)
    assert found["http_4xx"]["rows"]["value"] == pytest.approx(40)
    assert "small" in text


def test_containers_and_folders(written, tmp_path, dataset_folder):
    for tar in range(3):
        members = []
        for n in range(30):
            data = b"no image" if n % 10 == 0 else image_bytes(100 * tar + n, 64)
            members += [(f"{n}.png", data), (f"{n}.txt", b"A dog. It sits on the grass.")]
        write(tmp_path / f"tars/{tar}.tar", tar_bytes(members))
    for n in range(20):
        write(tmp_path / f"images/{n}.png", image_bytes(1000 + n, 64))
        write(tmp_path / f"images/{n}.txt", "A cat. It sleeps on the roof.")
    sources = [
        SourceConfig(name="tars", path=str(tmp_path / "tars")),
        SourceConfig(name="images", path=str(tmp_path / "images")),
        SourceConfig(name="ours", path=dataset_folder),
    ]
    result, _ = numbers(written(sources=sources), tmp_path, 300)
    found = outcomes_of(result)
    assert result["downloaded_bytes"]["value"] == 0
    assert found["not_an_image"]["sampled"] == 9
    assert (
        found["kept"]["share"]["low"] <= 1 - 9 / (90 + 20 + 196) <= found["kept"]["share"]["high"]
    )
    assert result["sources"][2]["rows"] == 196


def test_a_share_and_the_filters_on_columns_are_asked(written, tmp_path):
    rows = [
        json.dumps({"url": f"http://127.0.0.1:9/{n}", "caption": "A dog runs.", "nsfw": n % 2})
        for n in range(400)
    ]
    path = write(tmp_path / "list.jsonl", "\n".join(rows) + "\n")
    source = SourceConfig(name="list", path=str(path), weight=0.5)
    config = written("filters.columns={nsfw: {max: 0.5}}", sources=[source])
    result, _ = numbers(config, tmp_path, 400)
    found = outcomes_of(result)
    assert found["not_sampled"]["share"]["value"] == pytest.approx(0.5, abs=0.1)
    assert found["column"]["share"]["value"] == pytest.approx(0.25, abs=0.1)
    assert found["kept"]["sampled"] == 0
    assert result["stored_bytes"]["value"] == 0


def test_the_command_line(written, tmp_path, capsys):
    config = written()
    assert main(["estimate", config, "chunk_rows=50", "--rows", "40"]) == 0
    text = capsys.readouterr().out
    assert "CPU-hours" in text
    assert "kept" in text
    assert main(["estimate", config, "sources.0.path=/nowhere.csv", "--rows", "40"]) == 2
    assert "/nowhere.csv" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["estimate", config, "--rows", "0"])


def test_wilsons_interval():
    # Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    cases = [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)]
    for found, count, low, high in [*cases, (1, 29, 0.0061, 0.1718)]:
        interval = wilson(found / count, count)
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


def test_intervals_hold_as_often_as_they_say():
    """Samples drawn from two known sources: 95% of intervals must hold the truth."""
    random = np.random.default_rng(0)
    config = DataConfig(sources=(SourceConfig(name="a", path="a.csv"),), output="/out")
    truth = {"kept": 0.9 * 0.6 + 0.1 * 0.1, "cpu": 0.9e6 * 3e-3 + 0.1e6 * 9e-3}
    held = dict.fromkeys(truth, 0)
    for _ in range(400):
        sources = []
        for name, total, share, mean in (("a", 9e5, 0.6, 3e-3), ("b", 1e5, 0.1, 9e-3)):
            count = int(total / 1000)
            outcomes = np.where(random.random(count) < share, "kept", "dns").tolist()
            nothing = np.zeros(count)
            seconds = random.exponential(mean, count)
            sources.append(SourceProbe(name, total, outcomes, nothing, nothing, seconds))
        result = predict(Probe(sources, 0.0, np.full(10, 0.01), 0.0, 0.5, 10.0), config, 2)
        kept, cpu = result.outcomes[0].share, result.cpu_hours.times(3600)
        held["kept"] += kept.low <= truth["kept"] <= kept.high
        held["cpu"] += cpu.low <= truth["cpu"] <= cpu.high
    assert all(0.92 <= count / 400 <= 0.985 for count in held.values()), held
