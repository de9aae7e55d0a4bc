"""Sources anywhere: S3, what fsspec opens, and the line for each place that cannot be read."""

import gzip
import io
import lzma
import os
import re
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from moto.server import ThreadedMotoServer
from sources_support import captions_of, image_bytes, read_rows, source, tar_bytes
from stage_support import S3_BUCKET, s3_environment
from throttled_s3 import Throttled
from werkzeug.serving import make_server

from caft.errors import DataError, StorageError
from pipelines import storage
from pipelines.data.sources import (
    detect_kind,
    fetch_file,
    is_file,
    list_containers,
    paths,
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


class Place(NamedTuple):
    """A source's root as a configuration names it, and where its files are written."""

    root: str
    stored: str

    def put(self, name, data):
        storage.write_bytes(storage.join(self.stored, name), data)
        return storage.join(self.root, name)


class Ranges(SimpleHTTPRequestHandler):
    """Files of a folder, in parts too if they are asked for."""

    gives_parts = True

    def send_head(self):
        asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        file = super().send_head() if asked is None or not self.gives_parts else None
        if file is not None or asked is None:
            return file
        data = Path(self.translate_path(self.path)).read_bytes()
        part = data[int(asked[1]) : int(asked[2] or len(data)) + 1]
        self.send_response(206)
        end = int(asked[1]) + len(part) - 1
        self.send_header("Content-Range", f"bytes {asked[1]}-{end}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        return io.BytesIO(part)

    def log_message(self, format, *args):
        pass


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    """A folder, and the address at which it is served."""
    folder = tmp_path_factory.mktemp("web")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def known_to_fsspec(monkeypatch, name):
    """A filesystem in memory that stands for one that needs an account."""
    kind = type(name, (MemoryFileSystem,), {"protocol": name, "store": {}, "pseudo_dirs": [""]})
    kind._strip_protocol = classmethod(
        lambda cls, path: MemoryFileSystem._strip_protocol(path.replace(f"{name}://", "memory://"))
    )
    monkeypatch.setitem(import_module("fsspec.registry")._registry, name, kind)


# Schemes in upper case are the same places.
@pytest.fixture(params=["local", "FILE", "S3", "HTTP", "gs", "hf"])
def place(request, tmp_path, monkeypatch):
    kind, name = request.param, tmp_path.name
    if kind == "local":
        return Place(str(tmp_path), str(tmp_path))
    if kind == "FILE":
        return Place(f"FILE://{tmp_path}", str(tmp_path))
    if kind in ("gs", "hf"):
        known_to_fsspec(monkeypatch, kind)
        return Place(f"{kind}://{name}", f"{kind}://{name}")
    if kind == "HTTP":
        folder, address = request.getfixturevalue("web")
        return Place(f"{address.replace('http', 'HTTP', 1)}/{name}", str(folder / name))
    host, port = request.getfixturevalue("s3_server").get_host_and_port()
    s3_environment(monkeypatch, f"http://{host}:{port}")
    return Place(f"S3://{S3_BUCKET}/{name}", f"s3://{S3_BUCKET}/{name}")


def parquet_bytes(**columns):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


CSV = b"url,text\nhttp://a/1,A dog.\n"
RECORD = b'{"url": "http://a/1", "text": "A dog."}'
TALK = b'[{"id": "1", "image": "http://a/1", "conversations": [{"from": "human", "value": "?"}, \
{"from": "gpt", "value": "A dog."}]}]'
LISTS = {
    "a.csv": CSV,
    "a.tsv": b"A dog.\thttp://a/1\n",
    "a.jsonl": RECORD + b"\n",
    "a.json": b"[" + RECORD + b"]",
    "talk.json": TALK.replace(b"\\\n", b""),
    "a.parquet": parquet_bytes(url=["http://a/1"], text=["A dog."]),
    "a.csv.zst": pa.Codec("zstd").compress(CSV, asbytes=True),
    "a.csv.gz": gzip.compress(CSV),
    "a.csv.xz": lzma.compress(CSV),
}


def test_lists_of_every_format(place):
    for name, data in LISTS.items():
        config = source(place.put(f"lists/{name}", data))
        check_source(config)
        (row,) = read_rows(config)
        assert list(captions_of(row).values()) == [["A dog."]], name
        assert row["url"] == "http://a/1"
        (identity,) = source_identity(config)
        assert identity.endswith(f"{name} {len(data)}")
        if name in ("a.csv", "a.parquet", "a.csv.gz"):
            rows, total = sample_rows(config, 10, 0)
            assert len(rows) == 1
            assert total == pytest.approx(1)


def test_images_in_folders_lists_tars_and_parquet(place):
    image = image_bytes()
    place.put("images/below/1.png", image)
    place.put("images/below/1.txt", b"A dog.")
    listed = place.put("list.csv", b"file_name,text\nbelow/1.png,A dog.\n")
    place.put("tars/0.tar", tar_bytes([("1.png", image), ("1.txt", b"A dog.")]))
    embedded = place.put("a.parquet", parquet_bytes(image=[image], text=["A dog."]))

    folder = source(f"{place.root}/images/")
    assert detect_kind(folder) == "folder"
    for config in (folder, source(listed, image_root=f"{place.root}/images")):
        check_source(config)
        (row,) = read_rows(config)
        assert captions_of(row)
        if is_file(row["url"]):  # others are downloaded
            fetch_file(row)
            assert row["data"] == image
    (row,) = read_rows(source(listed))  # below the list's own folder there is no such file
    if is_file(row["url"]):
        fetch_file(row)
        assert row["reason"] == "missing_file"

    names = ("tars/", "tars/*.tar", "tars/{0..0}.tar", "**/[0-9].tar", "{a,tars}/*.tar")
    for path in (*(f"{place.root}/{name}" for name in names), embedded):
        config = source(path)
        (container,) = list_containers(config)
        (row,) = read_container(container, config)
        assert row["data"] == image
        assert row["url"].startswith(f"{container}::")


def test_patterns_name_the_same_files_everywhere(place):
    for name in ("a/1.csv", "a/2.csv", "a/10.csv", "a/below/3.csv", "b/1.csv", "b/x.txt"):
        place.put(f"parts/{name}", CSV)
    matches = {
        "a/*.csv": ["a/1", "a/10", "a/2"],
        "a/?.csv": ["a/1", "a/2"],
        "a/[!1].csv": ["a/2"],
        "**/*.csv": ["a/1", "a/10", "a/2", "a/below/3", "b/1"],
        "{b,a}/1.csv": ["b/1", "a/1"],
        "a/{2..1}.csv": ["a/2", "a/1"],
        "{a,b}/*.csv": ["a/1", "a/10", "a/2", "b/1"],
        "a/": ["a/1", "a/10", "a/2"],
    }
    if place.root.lower().startswith("http"):
        del matches["a/?.csv"]  # there it starts a query
    root = paths.full_path(f"{place.root}/parts")
    for pattern, names in matches.items():
        found = paths.find_files(f"{place.root}/parts/{pattern}", (".csv",))
        assert [file.path for file in found] == [f"{root}/{name}.csv" for name in names], pattern
        assert {file.bytes for file in found} == {len(CSV)}


def test_nothing_there(place):
    place.put("there.csv", CSV)
    for name in ("nowhere.csv", "nowhere/*.csv", "nowhere/{0..1}.tar", "nowhere/"):
        with pytest.raises(DataError, match=r"no (such )?file|no images") as failed:
            check_source(source(f"{place.root}/{name}"))
        assert "\n" not in str(failed.value)


def test_files_that_come_are_found_again(place):
    place.put("parts/1.csv", CSV)
    config = source(f"{place.root}/parts/*.csv")
    assert len(source_identity(config)) == 1
    place.put("parts/2.csv", CSV)
    assert len(source_identity(config)) == 2


def test_a_bucket_that_is_not_there(s3_server, monkeypatch):
    host, port = s3_server.get_host_and_port()
    s3_environment(monkeypatch, f"http://{host}:{port}")
    for path in ("s3://no-such-bucket/a.csv", "s3://no-such-bucket/*.csv"):
        with pytest.raises(DataError, match=r"s3://no-such-bucket/.*: no (such )?file"):
            check_source(source(path))


def test_a_list_on_an_s3_that_turns_requests_away(monkeypatch):
    front = Throttled()
    server = make_server("127.0.0.1", 0, front, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    s3_environment(monkeypatch, f"http://127.0.0.1:{server.port}")
    storage.write_bytes(f"s3://{S3_BUCKET}/a.csv", CSV)
    front.refuse_every = 3
    assert len(read_rows(source(f"s3://{S3_BUCKET}/*.csv"))) == 1
    assert front.refused
    front.knows_account = False
    with pytest.raises(DataError, match=r"a\.csv: no permission to read it"):
        check_source(source(f"s3://{S3_BUCKET}/a.csv"))
    server.shutdown()


def test_parquet_on_a_server_without_parts(web, monkeypatch):
    folder, address = web
    (folder / "whole.parquet").write_bytes(
        parquet_bytes(url=["http://a/1"], text=[os.urandom(2**23).hex()])
    )
    monkeypatch.setattr(Ranges, "gives_parts", False)
    with pytest.raises(DataError, match=r"whole\.parquet: cannot be read: .* range requests"):
        check_source(source(f"{address}/whole.parquet"))


def test_a_web_server_that_is_away_or_refuses():
    with pytest.raises(DataError, match=r":9/a\.csv: cannot be read: Cannot connect"):
        check_source(source("http://127.0.0.1:9/a.csv"))


def test_files_inside_of_others_are_refused(tmp_path):
    with pytest.raises(StorageError, match="files inside of another file are not read; unpack it"):
        check_source(source(f"zip://a.csv::{tmp_path}/a.zip"))


def test_a_package_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(StorageError, match=r"GS://b/a\.csv: a package .* not installed: .*gcsfs"):
        check_source(source("GS://b/a.csv"))


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
