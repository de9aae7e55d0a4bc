"""Row groups on a node's disk: later epochs ask the storage for nothing."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import boto3
import numpy as np
import pyarrow as pa
import pytest
from scene_files import write_scenes
from stage_support import S3_BUCKET, s3_environment
from throttled_s3 import Throttled
from werkzeug.serving import make_server

from caft.config import load_model_config
from pipelines.data.dataset import open_dataset
from pipelines.train import ingest
from pipelines.train import loader as loaders
from pipelines.train.cache import RowGroupCache
from pipelines.train.config import CacheConfig, IngestConfig
from pipelines.train.ingest import index_row_groups, iter_batches
from pipelines.train.loader import Loader
from pipelines.train.plan import EpochPlan

GB = 10**9
TABLE = pa.table({"image": [b"x" * 1000]})


def sized(folder, tables, dataset="a"):
    """A cache with room for `tables` of TABLE."""
    one = RowGroupCache(CacheConfig(folder=str(folder / "probe"), max_gb=1), "a")
    one.table("0", lambda: TABLE)
    (file,) = (folder / "probe").glob("*/*/*")
    config = CacheConfig(
        folder=str(folder / "cache"), max_gb=(tables + 0.5) * file.stat().st_size / GB
    )
    return RowGroupCache(config, dataset)


def asked(cache, names):
    """The names that had to be read."""
    read = []

    def reader(name):
        def read_it():
            read.append(name)
            return TABLE

        return read_it

    for name in names:
        assert cache.table(name, reader(name)).equals(TABLE)
    return read


def held(folder):
    return sum(file.stat().st_size for file in (folder / "cache").glob("*/*/*"))


def test_what_was_read_once_is_there_within_the_bound(tmp_path):
    names = [str(n) for n in range(6)]
    cache = sized(tmp_path, 4)
    assert asked(cache, names) == names
    assert asked(cache, names) == names[4:]  # those stay that came first
    assert held(tmp_path) <= cache._most
    assert asked(sized(tmp_path, 4), names) == names[4:]  # another process of the node


def test_another_dataset_takes_the_place_of_one_that_is_done(tmp_path):
    names = [str(n) for n in range(4)]
    asked(sized(tmp_path, 4), names)
    other = sized(tmp_path, 4, dataset="b")
    assert asked(other, names) == names
    assert asked(other, names) == []
    assert held(tmp_path) <= other._most


@pytest.mark.parametrize("damage", [lambda data: data[:40], lambda data: data[:-1] + b"?", bytes])
def test_damaged_files_are_read_again(tmp_path, damage):
    cache = sized(tmp_path, 4)
    asked(cache, "ab")
    for file in (tmp_path / "cache").glob("*/*/*"):
        file.write_bytes(damage(file.read_bytes()) if damage is not bytes else b"")
    assert asked(cache, "ab") == ["a", "b"]
    assert asked(cache, "ab") == []


def test_workers_of_a_node_share_it(tmp_path):
    names = [str(n) for n in range(40)]
    caches = [sized(tmp_path, 20) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda cache: asked(cache, names), caches))
    cache = sized(tmp_path, 20)
    assert held(tmp_path) <= cache._most
    assert len(asked(cache, names)) <= 24  # those of two that came at once may count twice


def test_a_disk_that_cannot_be_written_to_is_a_full_one(tmp_path):
    (tmp_path / "cache").write_text("no folder")
    cache = RowGroupCache(CacheConfig(folder=str(tmp_path / "cache"), max_gb=1), "a")
    assert asked(cache, "ab") == ["a", "b"]
    assert asked(cache, "ab") == ["a", "b"]


@pytest.fixture
def counted(monkeypatch):
    """An S3 server that counts what it is asked for."""
    application = Throttled()
    server = make_server("127.0.0.1", 0, application, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    s3_environment(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield application
    server.shutdown()


@pytest.fixture
def scenes(tmp_path, counted):
    """A dataset of several row groups, here and in a bucket."""
    write_scenes(tmp_path / "data", 512, load_model_config("caft_xs"))
    client, remote = boto3.client("s3"), f"s3://{S3_BUCKET}/{tmp_path.name}"
    for file in (tmp_path / "data").iterdir():
        client.upload_file(str(file), S3_BUCKET, f"{tmp_path.name}/{file.name}")
    return str(tmp_path / "data"), remote


def make(dataset, cache=None, **settings):
    opened = open_dataset(dataset)
    config = IngestConfig(extra_parts=0, lanes=2, window_steps=2, cache=cache, **settings)
    model = load_model_config("caft_xs")
    loader = Loader(dataset, "train", model, config, fingerprint=opened.fingerprint)
    groups = index_row_groups(opened, "train")
    return EpochPlan(groups, 64, 2, 2, seed=0), loader


def epoch(plan, loader, number):
    windows = [w for lane in range(plan.lanes) for w in plan.windows(number, lane)]
    return [loader(asdict(window))["images"] for window in windows]


def test_a_second_epoch_with_the_cache_asks_for_nothing(tmp_path, scenes, counted):
    cache = CacheConfig(folder=str(tmp_path / "cache"), max_gb=1)
    plan, loader = make(scenes[1], cache)
    here_plan, here = make(scenes[0])
    first = epoch(plan, loader, 0)
    before = counted.count
    second = epoch(plan, loader, 1)
    assert counted.count == before
    for found, number in ((first, 0), (second, 1)):
        for ours, due in zip(found, epoch(here_plan, here, number), strict=True):
            np.testing.assert_array_equal(ours, due)


def test_a_footer_is_read_once_and_not_with_every_window(scenes, counted):
    plan, loader = make(scenes[1])
    loaders._footer.cache_clear()
    epoch(plan, loader, 0)
    before = counted.count
    pieces = sum(len(w.pieces) for lane in range(2) for w in plan.windows(1, lane))
    epoch(plan, loader, 1)
    assert counted.count - before <= 2 * pieces  # its size, and its rows


def test_segments_follow_one_another_with_the_same_batches(
    scenes, ray_cluster, monkeypatch, tmp_path
):
    plan, loader = make(scenes[0])
    due = [batch.images for batch in iter_batches(plan, loader, 0, 1, 1, 12)]
    monkeypatch.setattr(ingest, "SEGMENT_GROUPS", 3)
    begun = []
    decoded = ingest._decoded
    monkeypatch.setattr(
        ingest, "_decoded", lambda *given: begun.append(len(found)) or decoded(*given)
    )
    plan, loader = make(scenes[0], CacheConfig(folder=str(tmp_path / "cache"), max_gb=1))
    # As of a bucket, which the cluster's processes do not know of.
    monkeypatch.setattr(ingest.storage, "is_local", lambda path: False)
    found = []
    for batch in iter_batches(plan, loader, 0, 1, 1, 12):
        found.append(batch.images)
    assert begun == [0, 1]  # the second after one of the first segment's three groups
    assert len(found) == len(due) == 11
    for ours, other in zip(found, due, strict=True):
        np.testing.assert_array_equal(ours, other)
