"""Places that fail and pictures that hang: throttled S3, full disks, stalled decoders, poison.
Each costs time or one row, and is told in one line."""

import io
import os
import subprocess
import threading
from contextlib import contextmanager, suppress
from glob import glob

import numpy as np
import psutil
import pytest
import ray
from PIL import Image
from scripted_server import body, serving
from stage_support import (
    S3_BUCKET,
    assert_only_whole_files,
    assert_same,
    caption,
    decoders,
    drive,
    keys_of,
    picture,
    rejects_of,
    s3_environment,
    small_config,
    write_list,
)
from throttled_s3 import Throttled
from werkzeug.serving import make_server

from caft.errors import ClusterError, StorageError
from pipelines import storage
from pipelines.data.dataset import open_dataset
from pipelines.data.stage import run

COUNT = 40


@pytest.fixture(scope="module")
def server():
    with serving() as server:
        server.script |= {f"/{n}.jpg": body(picture(n, 64 + n)) for n in range(COUNT)}
        yield server


@pytest.fixture(scope="module")
def source(server, tmp_path_factory):
    rows = [(server.url(f"/{n}.jpg"), caption(n)) for n in range(COUNT)]
    return write_list(tmp_path_factory.mktemp("list") / "list.csv", rows)


@pytest.fixture(scope="module")
def undisturbed(ray_cluster, source, tmp_path_factory) -> str:
    config = small_config(tmp_path_factory.mktemp("undisturbed"), [source])
    run(config)
    return config.output


@pytest.fixture
def address(ray_cluster):
    return ray.get_runtime_context().gcs_address


@pytest.fixture
def s3(monkeypatch):
    """A bucket, its server's front, and the environment that leads there."""
    front = Throttled()
    server = make_server("127.0.0.1", 0, front, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    values = s3_environment(monkeypatch, f"http://127.0.0.1:{server.port}")
    yield f"s3://{S3_BUCKET}", front, values
    server.shutdown()
    thread.join()


@pytest.mark.slow
def test_a_throttled_s3_gets_the_same_set_kills_included(
    undisturbed, source, address, s3, tmp_path
):
    bucket, front, values = s3
    front.refuse_every = 7
    config = small_config(tmp_path, [source], output=f"{bucket}/set")
    driver = drive(tmp_path, config, address, **values)
    assert driver.until(
        lambda: [name for name in storage.list_files(f"{config.output}/work") if "chunk-" in name]
    ), driver.log
    driver.kill()
    driver = drive(tmp_path, config, address, **values)
    assert driver.wait() == 0, driver.log
    assert front.refused > 10
    assert_same(config.output, undisturbed)
    assert storage.list_files(f"{config.output}/work") == []


def test_credentials_that_are_refused_are_one_line(source, s3, tmp_path):
    bucket, front, _ = s3
    front.knows_account = False
    with pytest.raises(StorageError, match=r"^s3://caft-test/set/manifest.json: .*ACCESS") as error:
        run(small_config(tmp_path, [source], output=f"{bucket}/set"))
    assert "\n" not in str(error.value)


@contextmanager
def small_disk(folder, size: str):
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(["mount", *options], check=False).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("phase", ["chunks", "files"])
def test_a_full_disk_is_one_error_and_then_the_run_goes_on(
    ray_cluster, server, phase, tmp_path, monkeypatch
):
    server.script |= {f"/large-{n}.jpg": body(noise(n)) for n in range(COUNT)}
    rows = [(server.url(f"/large-{n}.jpg"), caption(n)) for n in range(COUNT)]
    source = write_list(tmp_path / "list.csv", rows)
    disk = tmp_path / "disk"
    # All candidates need 3.6 MB; so do the files, a part of a chunk or two at a time.
    size = {"chunks": "2m", "files": "4100k"}[phase]
    with small_disk(disk, size):
        config = small_config(disk, [source], file_mb=2, tracking=tracking_in(tmp_path))
        with pytest.raises(StorageError) as full:
            run(config)
        message = str(full.value)
        assert "no space left on the device; free some and run again" in message
        assert "\n" not in message
        done = len(glob(f"{config.output}/work/chunk-*.json"))
        assert done == 4 if phase == "files" else done < 4
        assert_only_whole_files(config.output)
        asked = len(server.requests)
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        run(config)
        assert len(server.requests) - asked == COUNT - 10 * done  # what was whole was kept
        assert len(set(keys_of(config.output))) == len(keys_of(config.output)) == COUNT
        assert_only_whole_files(config.output)


def noise(seed: int) -> bytes:
    """A picture of 90 kB, which is kept as it came."""
    pixels = np.random.default_rng(seed).integers(0, 255, (304, 304, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=92)
    return stream.getvalue()


def tracking_in(folder) -> dict:
    return {"uri": f"sqlite:///{folder / 'mlflow.db'}"}


@contextmanager
def stopping_decoders(most: int):
    """Stop (SIGSTOP) up to so many decoding processes: each of them hangs for good."""
    stopped: list[psutil.Process] = []
    over = threading.Event()

    def stop() -> None:
        while not over.wait(0.05):
            for decoder in decoders():
                if decoder not in stopped and len(stopped) < most:
                    decoder.suspend()
                    stopped.append(decoder)

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        yield stopped
    finally:
        over.set()
        thread.join()
        for decoder in stopped:
            with suppress(psutil.NoSuchProcess):
                decoder.kill()


@pytest.mark.slow
def test_a_chunk_that_hangs_is_started_again(undisturbed, source, tmp_path):
    config = small_config(tmp_path, [source], stall_timeout_s=3.0)
    with stopping_decoders(2) as stopped:
        run(config)
    assert len(stopped) == 2
    assert_same(config.output, undisturbed)


def test_a_chunk_that_always_hangs_ends_the_run_with_one_error(ray_cluster, source, tmp_path):
    config = small_config(tmp_path, [source], stall_timeout_s=1.0, concurrency=1)
    with stopping_decoders(1000), pytest.raises(ClusterError) as error:
        run(config)
    assert "chunk: its process ended 5 times; see the workers' logs" in str(error.value)
    assert_only_whole_files(config.output)


def scan_bomb(side_px: int, scans: int) -> bytes:
    """A small progressive JPEG with its last scan repeated: each takes as long to decode as if it
    were new, all of them far longer than a test allows."""
    stream = io.BytesIO()
    Image.new("RGB", (side_px, side_px), "red").save(stream, "JPEG", progressive=True)
    data = stream.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


def test_a_poison_picture_costs_its_own_row_alone(ray_cluster, server, tmp_path):
    """A picture that takes longer to decode than is allowed ends the decoding process."""
    server.script["/bomb.jpg"] = body(scan_bomb(side_px=4000, scans=2000))
    rows = [(server.url(f"/{n}.jpg"), caption(n)) for n in range(12)]
    source = write_list(
        tmp_path / "list.csv", [*rows[:5], (server.url("/bomb.jpg"), "A. B."), *rows[5:]]
    )
    config = small_config(tmp_path, [source], image={"decode_timeout_s": 3.0})
    run(config)
    (reject,) = rejects_of(config.output)
    assert reject["url"].endswith("/bomb.jpg")
    assert reject["reason"] == "decoder_crash"
    assert open_dataset(config.output).manifest["counts"]["kept"] == 12
