"""A dataset that commit 9899a90 began is refused by the behaviour that changed since; one that it
finished is read. Both were made by that commit from four pictures in /pictures."""

import json
import shutil
from pathlib import Path

import pytest
from sources_support import source

from caft.config import load_config
from caft.errors import ConfigError
from pipelines.behaviours import BEHAVIOURS
from pipelines.data import stage
from pipelines.data.config import DataConfig
from pipelines.data.dataset import open_dataset
from pipelines.data.retry import retry
from pipelines.data.sources import read_container
from pipelines.data.sources.check import check_source

STORED = Path(__file__).parents[1] / "fixtures" / "dataset_9899a90"


@pytest.fixture
def stored(tmp_path) -> Path:
    """A copy whose configurations name where it lies now."""
    folder = tmp_path / "stored"
    shutil.copytree(STORED, folder)
    for file in folder.glob("*/data.yaml"):
        file.write_text(file.read_text().replace("/pictures", str(folder)))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_one_that_was_begun_is_refused_by_name_and_left_as_it_was(stored):
    config = load_config(DataConfig, stored / "begun" / "data.yaml")
    before = contents(stored)
    now = BEHAVIOURS["captions"].number
    with pytest.raises(ConfigError, match=rf"captions \(.*\) is 1 there and {now} in this version"):
        stage.run(config)
    assert contents(stored) == before


def test_one_that_was_finished_is_read_and_not_made_again(stored, capsys):
    config = load_config(DataConfig, stored / "finished" / "data.yaml")
    stage.run(config)
    assert "finished before" in capsys.readouterr().out
    dataset = open_dataset(config.output)
    assert dataset.rows == dataset.manifest["counts"]["kept"] == 4
    listed = source(config.output)
    check_source(listed)
    rows = list(read_container(f"{config.output}/part-00000.parquet", listed))
    assert [row["url"] for row in rows] == [f"/pictures/{n}.png" for n in range(4)]
    assert rows[0]["texts"][0]["texts"] == ["A dog runs", "Number 0 is here"]


def test_one_of_the_former_look_is_read_and_no_retry_adds_rows_of_another(stored):
    folder = stored / "finished"
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["behaviours"] = {"captions": BEHAVIOURS["captions"].number, "pictures": 2}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert open_dataset(str(folder)).rows == 4
    now = BEHAVIOURS["pictures"].number
    with pytest.raises(ConfigError, match=rf"pictures \(.*\) is 2 there and {now} in this version"):
        retry(str(folder), ["dns"])
