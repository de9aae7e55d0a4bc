"""What travels with a job: code and recipes, the same bytes each time, no data and no secrets."""

import os
import zipfile

import pytest

from caft.errors import ConfigError
from pipelines.submit import package
from pipelines.submit.package import pack


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "checkout"
    for name in (
        "caft/model.py", "configs/a.yaml", ".git/HEAD", ".env", ".venv/x.py", "env/pyvenv.cfg",
        "env/lib.py", "runs/demo/metrics.json", "caft/__pycache__/model.pyc", "set/part-0.parquet",
        "server.pem", "caft.egg-info/PKG-INFO",
    ):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_code_and_recipes_travel_and_nothing_else(checkout, tmp_path):
    os.symlink("/etc/passwd", checkout / "link")
    packed = pack(checkout, tmp_path)
    with zipfile.ZipFile(packed.path) as archive:
        assert archive.namelist() == ["caft/model.py", "configs/a.yaml"]
    assert (packed.files, packed.size_bytes) == (2, packed.path.stat().st_size)


def test_equal_files_give_equal_bytes(checkout, tmp_path):
    first = pack(checkout, tmp_path).path.read_bytes()
    os.utime(checkout / "caft/model.py", (1e9, 1e9))
    assert pack(checkout, tmp_path).path.read_bytes() == first
    (checkout / "caft/model.py").write_text("changed")
    assert pack(checkout, tmp_path).path.read_bytes() != first


def test_large_files_are_left_out_and_named(checkout, tmp_path, monkeypatch):
    monkeypatch.setattr(package, "MAX_FILE_BYTES", 100)
    (checkout / "caft" / "list.csv").write_bytes(b"x" * 101)
    assert pack(checkout, tmp_path).left_out == ("caft/list.csv",)


def test_a_folder_full_of_images_is_refused_by_name(checkout, tmp_path, monkeypatch):
    monkeypatch.setattr(package, "MAX_BYTES", 1000)
    (checkout / "images").mkdir()
    for number in range(11):
        (checkout / "images" / f"{number}.jpg").write_bytes(b"x" * 100)
    with pytest.raises(ConfigError, match=r"copied to every node.*move images \("):
        pack(checkout, tmp_path)
