"""A dataset as others read it: WebDataset's loader and Hugging Face's, every row and caption."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image
from sources_support import source

from pipelines.data.__main__ import main
from pipelines.data.dataset import open_dataset
from pipelines.data.sources import list_containers, read_container


@pytest.fixture(scope="module")
def rows(dataset_folder):
    names = [entry.name for entry in open_dataset(dataset_folder).files]
    tables = [pq.read_table(Path(dataset_folder, name)) for name in names]
    return {row["key"]: row for table in tables for row in table.to_pylist()}


def first_text(row):
    return ". ".join(row["captions"][0]["sentences"])


def test_tars_as_open_clip_and_flair_read_them(dataset_folder, rows, tmp_path, capsys):
    output = tmp_path / "tars"
    command = ["export", dataset_folder, "--to", "webdataset", f"output={output}"]
    assert main(command) == 0
    assert f"exported {len(rows)} rows" in capsys.readouterr().out
    sizes = json.loads((output / "sizes.json").read_text())
    assert sum(sizes.values()) == len(rows)
    tars = sorted(str(path) for path in output.glob("*.tar"))
    assert [Path(tar).name for tar in tars] == list(sizes)
    loader = webdataset.WebDataset(tars, shardshuffle=False).decode("pil")
    seen = set()
    for sample in loader.rename(image="jpg;png;jpeg;webp", text="txt", fields="json"):
        row = rows[sample["__key__"]]
        seen.add(row["key"])
        assert sample["image"].size == (row["width"], row["height"])
        assert sample["text"] == first_text(row) == sample["fields"]["caption"]
        assert sample["fields"]["url"] == row["url"]
        source_name = row["captions"][0]["source"]
        known = [value for value in sample["fields"].values() if isinstance(value, list)]
        assert row["captions"][0]["sentences"] in known, source_name
    assert seen == set(rows)
    before = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    assert main(command) == 0  # it is there
    assert set(output.iterdir()) == set(before)
    assert all(path.stat().st_mtime_ns == before[path] for path in output.glob("*.tar"))
    again = source(output)  # and the data stage reads what it has written
    read = [row for tar in list_containers(again) for row in read_container(tar, again)]
    assert len(read) == len(rows)
    assert all(row["reason"] is None for row in read)


def test_parquet_as_hugging_face_loads_it(dataset_folder, rows, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    output = str(tmp_path / "hf")
    assert main(["export", dataset_folder, "--to", "huggingface", f"output={output}"]) == 0
    loaded = datasets.load_dataset(output, cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {row["split"] for row in rows.values()}
    assert sum(map(len, loaded.values())) == len(rows)
    for row in (row for split in loaded.values() for row in split):
        ours = rows[row["key"]]
        assert isinstance(row["image"], Image.Image)
        assert row["image"].size == (ours["width"], ours["height"])
        assert row["captions"] == ours["captions"]
        assert row["text"] == first_text(ours)


def test_an_export_goes_nowhere_else(dataset_folder, tmp_path, capsys):
    def fails(to, *overrides):
        assert main(["export", dataset_folder, "--to", to, *overrides]) != 0
        return capsys.readouterr().err

    assert "output: give the folder" in fails("webdataset")
    assert "holds a dataset" in fails("webdataset", f"output={dataset_folder}")
    (tmp_path / "x").mkdir()
    (tmp_path / "x/export.json").write_text('{"to": "huggingface", "fingerprint": "other"}')
    assert "export.fingerprint" in fails("huggingface", f"output={tmp_path}/x")
