"""The data stage on a real server: every row accounted, crashes survived, S3 written."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from stage_support import S3_BUCKET, s3_environment

from caft.config import load_config, to_yaml
from caft.errors import ConfigError, DataError, StorageError
from pipelines import storage
from pipelines.data.config import DataConfig
from pipelines.data.dataset import DATASET_SCHEMA, open_dataset
from pipelines.data.reasons import REASONS
from pipelines.data.stage import run, summary
from pipelines.demo.sample import FAULTS


def rejects_of(folder):
    files = sorted(Path(folder, "rejects").glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def test_a_superpixel_network_that_does_not_serve_is_known_before_anything_is_read(tmp_path):
    overrides = [
        f"output={tmp_path}/out", "sources=[{name: a, path: none.csv}]",
        "superpixels.segmenter={method: sfcn, weights: nowhere}",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"superpixels\.weights: 'nowhere' is no file"):
        run(load_config(DataConfig, None, overrides))
    assert not (tmp_path / "out").exists()


def test_every_row_is_kept_or_rejected_for_the_right_reason(dataset_folder, sample):
    dataset = open_dataset(dataset_folder)
    counts = dataset.manifest["counts"]
    rejects = rejects_of(dataset_folder)
    assert counts["input_rows"] == 96 + 24 + 76 + len(FAULTS) + 3
    assert counts["kept"] == dataset.rows == 96 + 24 + 76
    assert counts["input_rows"] == counts["kept"] + len(rejects)
    reason = {row["url"].removeprefix(sample.base_url + "/"): row["reason"] for row in rejects}
    assert {path: reason[path] for path in FAULTS} == FAULTS
    assert reason["scenes/train/none.jpg"] == "no_caption"
    assert reason["scenes/train/000000.jpg"] == "merged_captions"
    assert reason["ftp://example.org/a.jpg"] == "bad_url"
    assert set(reason.values()) <= set(REASONS)


def test_rows_follow_the_schema_and_hold_sentences(dataset_folder):
    table = pq.read_table(Path(dataset_folder, "part-00000.parquet"))
    assert table.schema.equals(DATASET_SCHEMA)
    row = table.to_pylist()[0]
    assert row["width"] == row["height"] == 96
    assert len(row["sha256"]) == 64
    (caption,) = row["captions"]
    assert caption["kind"] == "long"
    assert 4 <= len(caption["sentences"]) <= 8
    assert all(len(sentence) > 10 for sentence in caption["sentences"])
    splits = set(table["split"].to_pylist())
    assert splits == {"train"}


def test_a_finished_dataset_is_not_made_again(dataset_folder, make_data_config, capsys):
    before = Path(dataset_folder, "manifest.json").stat().st_mtime_ns
    run(make_data_config(dataset_folder))
    assert "finished before" in capsys.readouterr().out
    assert Path(dataset_folder, "manifest.json").stat().st_mtime_ns == before


def test_another_configuration_is_refused_in_the_same_folder(dataset_folder, make_data_config):
    with pytest.raises(ConfigError, match=r"image\.max_side_px: .* made with \d+, here it is 64"):
        run(make_data_config(dataset_folder, "image.max_side_px=64"))


def test_a_killed_run_goes_on_and_ends_with_the_same_files(
    dataset_folder, make_data_config, tmp_path
):
    """SIGKILL the driver once its first chunk is written, then run the same command again."""
    config = make_data_config(str(tmp_path / "data"), "concurrency=1")
    path = tmp_path / "data.yaml"
    path.write_text(to_yaml(config))
    command = [sys.executable, "-m", "pipelines.data", str(path)]
    driver = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("data/work/chunk-*.json")):
        assert time.monotonic() < deadline
        assert driver.poll() is None
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert not (tmp_path / "data" / "manifest.json").exists()
    with pytest.raises(DataError, match="has not finished"):
        open_dataset(str(tmp_path / "data"))
    run(config)
    ours, undisturbed = open_dataset(config.output), open_dataset(dataset_folder)
    assert ours.fingerprint == undisturbed.fingerprint
    assert ours.manifest["counts"] == undisturbed.manifest["counts"]


@pytest.mark.slow
def test_the_output_may_be_on_s3(make_data_config, s3_bucket, dataset_folder, tmp_path):
    bucket, environment = s3_bucket
    output = f"s3://{bucket}/of_test_stage"  # servers of one process share their buckets
    path = tmp_path / "data.yaml"
    path.write_text(to_yaml(make_data_config(output)))
    command = [sys.executable, "-m", "pipelines.data", str(path)]
    subprocess.run(command, env=os.environ | environment, check=True, timeout=300)
    assert open_dataset(output).fingerprint == open_dataset(dataset_folder).fingerprint
    assert storage.list_files(f"{output}/rejects", ".parquet")
    assert b"rows were kept" in storage.read_bytes(f"{output}/stats.html")


@pytest.fixture
def s3_bucket(monkeypatch):
    """A bucket of a real S3 server on loopback. Ray's tasks do not inherit a changed environment,
    so the job has its own, as a submitted job would."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    values = s3_environment(monkeypatch, f"http://{host}:{port}")
    yield S3_BUCKET, values
    server.stop()


def test_a_damaged_part_is_named(dataset_folder, tmp_path):
    import shutil

    copy = tmp_path / "data"
    shutil.copytree(dataset_folder, copy)
    part = copy / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"part-00001\.parquet: corrupt Parquet"):
        open_dataset(str(copy))
    part.unlink()
    with pytest.raises(DataError, match=r"part-00001\.parquet: missing"):
        open_dataset(str(copy))


def test_a_list_of_dead_links_is_an_error_and_no_dataset(ray_cluster, make_data_config, tmp_path):
    listing = tmp_path / "dead.csv"
    listing.write_text("Image Path,longSV_captions\nhttp://127.0.0.1:9/a.jpg,A dog. A cat.\n")
    config = make_data_config(str(tmp_path / "out"))
    source = config.sources[0].model_copy(update={"path": str(listing)})
    config = config.model_copy(update={"sources": (source,)})
    with pytest.raises(DataError, match="kept 0"):
        run(config)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_no_disk_space_is_one_clear_error(ray_cluster, make_data_config, tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    options = ["-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(["mount", *options], check=False).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        with pytest.raises(StorageError, match=r"small/data.*(no space left|MiB free)"):
            run(make_data_config(str(mount / "data")))
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


def test_summary_adds_up():
    counts = {"input_rows": 1200, "kept": 1190, "rejected": {"dns": 3, "timeout": 7}}
    assert summary(counts) == "input 1,200 = kept 1,190 + rejected 10 (dns 3, timeout 7)"


def test_the_configuration_is_kept_with_the_dataset(dataset_folder):
    manifest = json.loads(Path(dataset_folder, "manifest.json").read_text())
    assert manifest["config"]["chunk_rows"] == 60
    assert Path(dataset_folder, "data.yaml").exists()
