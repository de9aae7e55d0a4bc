"""Files behind one set of functions, on disk and on S3."""

import os

import pytest

from caft.errors import ConfigError, StorageError
from pipelines import storage


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path, monkeypatch):
    if request.param == "local":
        yield str(tmp_path / "root")
        return
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3").create_bucket(Bucket="bucket")
    yield "s3://bucket/root"
    server.stop()


def test_files_are_written_listed_read_and_deleted(root):
    assert storage.list_files(root) == []
    storage.write_bytes(storage.join(root, "b.bin"), b"two")
    storage.write_json(storage.join(root, "a.json"), {"x": 1})
    assert storage.list_files(root) == ["a.json", "b.bin"]
    assert storage.list_files(root, ".json") == ["a.json"]
    assert storage.read_json(storage.join(root, "a.json")) == {"x": 1}
    assert storage.read_bytes(storage.join(root, "b.bin")) == b"two"
    copy = storage.local_copy(root)
    assert sorted(os.listdir(copy)) == ["a.json", "b.bin"]


def test_a_missing_file_is_named(root):
    with pytest.raises(StorageError, match=r"nothing\.json: no such file"):
        storage.read_json(storage.join(root, "nothing.json"))


def test_relative_paths_are_refused_inside_a_ray_job(monkeypatch):
    assert os.path.isabs(storage.require_absolute("runs/x", "output"))
    monkeypatch.setenv("RAY_JOB_SUBMISSION_ID", "raysubmit_1")
    with pytest.raises(ConfigError, match="output: 'runs/x' is relative"):
        storage.require_absolute("runs/x", "output")
    assert storage.require_absolute("s3://b/x", "output") == "s3://b/x"


def test_work_that_cannot_fit_is_refused(tmp_path):
    with pytest.raises(StorageError, match=r"MiB free, about .* MiB needed"):
        storage.check_space(str(tmp_path / "new" / "folder"), 2**60)
