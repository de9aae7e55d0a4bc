"""Files behind one set of functions, on disk and on S3."""

import os

import pytest

from caft.errors import ConfigError, StorageError
from pipelines import storage


def test_files_are_written_listed_read_and_deleted(place):
    assert storage.list_files(place) == []
    storage.write_bytes(storage.join(place, "b.bin"), b"two")
    storage.write_json(storage.join(place, "a.json"), {"x": 1})
    assert storage.list_files(place) == ["a.json", "b.bin"]
    assert storage.list_files(place, ".json") == ["a.json"]
    assert storage.read_json(storage.join(place, "a.json")) == {"x": 1}
    assert storage.read_bytes(storage.join(place, "b.bin")) == b"two"
    with storage.opened(place) as copy:
        assert sorted(os.listdir(copy)) == ["a.json", "b.bin"]
    with storage.opened(storage.join(place, "b.bin")) as file:
        assert file.read_bytes() == b"two"


def test_a_missing_file_is_named(place):
    with pytest.raises(StorageError, match=r"nothing\.json: no such file"):
        storage.read_json(storage.join(place, "nothing.json"))


def test_relative_paths_are_refused_inside_a_ray_job(monkeypatch):
    assert os.path.isabs(storage.usable_path("runs/x", "output"))
    monkeypatch.setenv("RAY_JOB_SUBMISSION_ID", "raysubmit_1")
    with pytest.raises(ConfigError, match="output: 'runs/x' is relative"):
        storage.usable_path("runs/x", "output")
    assert storage.usable_path("s3://b/x", "output") == "s3://b/x"


def test_work_that_cannot_fit_is_refused(tmp_path):
    with pytest.raises(StorageError, match=r"MiB free, about .* MiB needed"):
        storage.check_space(str(tmp_path / "new" / "folder"), 2**60)
