"""Sources anywhere: S3, what fsspec opens, and the line for each place that cannot be read."""

import boto3
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from sources_support import captions_of, image_bytes, read_rows, source, tar_bytes

from caft.errors import DataError, StorageError
from pipelines import storage
from pipelines.data.sources import (
    detect_kind,
    fetch_file,
    list_containers,
    read_container,
    sample_rows,
    source_identity,
)
from pipelines.data.sources.check import check_source


@pytest.fixture(scope="module")
def s3_server():
    server = ThreadedMotoServer(port=0)
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["local", "file", "memory", "s3"])
def root(request, tmp_path, monkeypatch):
    if request.param == "local":
        return str(tmp_path)
    if request.param == "file":
        return f"file://{tmp_path}"
    if request.param == "memory":
        return f"memory://{tmp_path.name}"
    host, port = request.getfixturevalue("s3_server").get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3").create_bucket(Bucket="sources")
    return f"s3://sources/{tmp_path.name}"


def parquet_bytes(**columns):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def test_lists_of_every_format(root):
    lists = {
        "a.csv": b"url,text\nhttp://a/1,A dog.\n",
        "a.tsv": b"A dog.\thttp://a/1\n",
        "a.jsonl": b'{"url": "http://a/1", "text": "A dog."}\n',
        "a.parquet": parquet_bytes(url=["http://a/1"], text=["A dog."]),
        "a.csv.zst": pa.Codec("zstd").compress(b"url,text\nhttp://a/1,A dog.\n", asbytes=True),
    }
    for name, data in lists.items():
        config = source(storage.join(root, "lists", name))
        storage.write_bytes(config.path, data)
        check_source(config)
        (row,) = read_rows(config)
        assert list(captions_of(row).values()) == [["A dog."]]
        assert row["url"] == "http://a/1"
        assert len(source_identity(config)) == 1
        rows, total = sample_rows(config, 10, 0)
        assert len(rows) == 1
        assert total == pytest.approx(1)


def test_images_in_folders_lists_and_tars(root):
    image = image_bytes()
    storage.write_bytes(storage.join(root, "images", "below", "1.png"), image)
    storage.write_bytes(storage.join(root, "images", "below", "1.txt"), b"A dog.")
    storage.write_bytes(storage.join(root, "list.csv"), b"file_name,text\nbelow/1.png,A dog.\n")
    tar = tar_bytes([("1.png", image), ("1.txt", b"A dog.")])
    storage.write_bytes(storage.join(root, "tars", "0.tar"), tar)

    folder = source(storage.join(root, "images"))
    assert detect_kind(folder) == "folder"
    listed = source(storage.join(root, "list.csv"), image_root=storage.join(root, "images"))
    for config in (folder, listed):
        (row,) = read_rows(config)
        fetch_file(row)
        assert row["data"] == image
    (row,) = read_rows(source(listed.path))  # below the list's own folder there is no such file
    fetch_file(row)
    assert row["reason"] == "missing_file"

    for pattern in ("tars", "tars/*.tar", "tars/{0..0}.tar"):
        tars = source(storage.join(root, pattern))
        (container,) = list_containers(tars)
        (row,) = read_container(container, tars)
        assert (row["data"], row["url"]) == (image, f"{container}::1.png")


def test_nothing_there(root):
    for name in ("nowhere.csv", "nowhere/*.csv", "nowhere/{0..1}.tar"):
        with pytest.raises(DataError, match=r"no (such )?file"):
            check_source(source(storage.join(root, name)))


def test_a_server_that_cannot_be_reached(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"AWS_ENDPOINT_URL http://127.0.0.1:9: nobody answers"):
        check_source(source("s3://b/a.csv"))


def test_a_file_that_may_not_be_read():
    class Locked(fsspec.AbstractFileSystem):
        protocol = "locked"

        def info(self, path, **kwargs):
            return {"name": path, "size": 1, "type": "file"}

        def _open(self, path, *args, **kwargs):
            raise PermissionError(path)

    fsspec.register_implementation("locked", Locked, clobber=True)
    with pytest.raises(DataError, match=r"locked://a\.csv: no permission to read it"):
        check_source(source("locked://a.csv"))


@pytest.mark.parametrize("protocol", ["nowhere", "dropbox"])
def test_a_protocol_that_is_not_there(protocol):
    with pytest.raises(StorageError, match=rf"{protocol}://a/b\.csv: (a package|cannot be opened)"):
        check_source(source(f"{protocol}://a/b.csv"))
