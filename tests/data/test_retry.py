"""What failed for now is tried again and merged, as if it had never failed."""

import threading
import time
from glob import glob

import pytest
import ray
from scripted_server import body, serving, status
from stage_support import (
    Driver,
    assert_only_whole_files,
    caption,
    keys_of,
    picture,
    read,
    rejects_of,
    small_config,
    write_list,
)

from caft.errors import ConfigError, DataError
from pipelines.data.__main__ import main
from pipelines.data.dataset import DATASET_SCHEMA, open_dataset
from pipelines.data.retry import retry
from pipelines.data.stage import run
from pipelines.data.verify import verify

ROWS = 60
PICTURES = {f"/{n}.jpg": body(picture(n)) for n in range(ROWS)}
OUTAGE = ["connection", "timeout", "http_5xx"]


@pytest.fixture
def server():
    with serving() as server:
        server.script |= PICTURES
        yield server


def listed(tmp_path, server, rows=range(ROWS)):
    return write_list(tmp_path / "list.csv", [(server.url(f"/{n}.jpg"), caption(n)) for n in rows])


def rows_of(output):
    """Kept rows without regard to the file they are in."""
    tables = [read(f"{output}/{entry.name}") for entry in open_dataset(output).files]
    assert all(table.schema.equals(DATASET_SCHEMA) for table in tables)
    return sorted((row for t in tables for row in t.to_pylist()), key=lambda row: row["key"])


def test_a_server_that_dies_for_a_while_costs_no_row(ray_cluster, tmp_path):
    folder = tmp_path / "disturbed"
    folder.mkdir()
    with serving() as server:
        server.script |= PICTURES
        source = listed(tmp_path, server)
        undisturbed = small_config(tmp_path, [source])
        run(undisturbed)
        port = server.port
    config = small_config(folder, [source], concurrency=1)

    def outage() -> None:
        with serving(port=port) as server:
            server.script |= PICTURES
            await_or_fail(lambda: len(server.requests) > 12)
        await_or_fail(lambda: len(glob(f"{config.output}/work/chunk-*.json")) >= 4)
        with serving(port=port) as server:
            server.script |= PICTURES
            over.wait()

    over = threading.Event()
    source_server = threading.Thread(target=outage)
    source_server.start()
    try:
        run(config)
        failed = [row for row in rejects_of(config.output) if row["reason"] in OUTAGE]
        assert 10 <= len(failed) <= ROWS - 12
        assert len(keys_of(config.output)) + len(rejects_of(config.output)) == ROWS
        assert main(["retry", config.output, "--reason", ",".join(OUTAGE)]) == 0
    finally:
        over.set()
        source_server.join()
    assert rows_of(config.output) == rows_of(undisturbed.output)
    merged = open_dataset(config.output).manifest
    assert merged["counts"] == open_dataset(undisturbed.output).manifest["counts"]
    assert merged["generation"] == 1
    assert verify(config.output) == []
    assert not glob(f"{config.output}/work*")
    with pytest.raises(DataError, match="no row was rejected for connection, timeout, http_5xx"):
        retry(config.output, OUTAGE)


def test_what_fails_again_stays_a_reject(ray_cluster, server, tmp_path):
    config = small_config(tmp_path, [listed(tmp_path, server)])
    server.script |= {f"/{n}.jpg": status(503) for n in range(0, ROWS, 3)}
    server.script["/1.jpg"] = status(404)
    run(config)
    server.script |= {path: PICTURES[path] for path in ("/0.jpg", "/30.jpg", "/1.jpg")}
    server.requests.clear()
    retry(config.output, ["http_5xx"], ["download.timeout_s=7"])
    assert len(server.requests) == ROWS // 3  # and no other one
    counts = open_dataset(config.output).manifest["counts"]
    assert counts == {
        "input_rows": ROWS,
        "kept": ROWS - ROWS // 3 + 1,
        "rejected": {"http_4xx": 1, "http_5xx": ROWS // 3 - 2},
    }
    server.script |= PICTURES
    retry(config.output, ["http_5xx"])
    assert open_dataset(config.output).manifest["generation"] == 2
    retry(config.output, ["http_4xx"])
    assert open_dataset(config.output).manifest["counts"]["kept"] == ROWS
    assert verify(config.output) == []
    run(config)  # the first command again: nothing is to be done, and nothing is spoilt
    assert len(set(keys_of(config.output))) == ROWS
    assert verify(config.output) == []


def test_nothing_succeeds(ray_cluster, server, tmp_path):
    config = small_config(tmp_path, [listed(tmp_path, server, range(20))])
    server.script |= {f"/{n}.jpg": status(500) for n in range(8)}
    run(config)
    before = open_dataset(config.output)
    retry(config.output, ["http_5xx"])
    after = open_dataset(config.output)
    assert after.manifest["counts"] == before.manifest["counts"]
    assert after.fingerprint == before.fingerprint
    assert verify(config.output) == []


def test_what_the_dataset_has_already_is_a_duplicate(ray_cluster, server, tmp_path):
    config = small_config(tmp_path, [listed(tmp_path, server, range(20))])
    config = config.model_copy(
        update={"duplicates": config.duplicates.model_copy(update={"near_distance": 2})}
    )
    server.script |= {"/4.jpg": status(500), "/9.jpg": status(502), "/10.jpg": status(500)}
    run(config)
    held = {row["url"]: row["key"] for row in rows_of(config.output)}
    server.script["/4.jpg"] = PICTURES["/5.jpg"]  # less of a caption than /5.jpg has
    server.script["/9.jpg"] = PICTURES["/10.jpg"]  # more of one
    server.script["/10.jpg"] = body(picture(12, quality=60))
    retry(config.output, ["http_5xx"])
    rejected = {row["url"]: (row["reason"], row["detail"]) for row in rejects_of(config.output)}
    assert rejected == {
        server.url("/4.jpg"): ("duplicate_image", duplicates(held[server.url("/5.jpg")])),
        server.url("/10.jpg"): ("near_duplicate", duplicates(held[server.url("/12.jpg")])),
    }
    assert verify(config.output) == []


@pytest.mark.slow
def test_a_killed_retry_goes_on(ray_cluster, server, tmp_path):
    address = ray.get_runtime_context().gcs_address
    config = small_config(tmp_path, [listed(tmp_path, server)], chunk_rows=5)
    server.script |= {f"/{n}.jpg": status(503) for n in range(0, ROWS, 2)}
    server.script["/1.jpg"] = status(404)
    run(config)
    server.script |= PICTURES
    command = ["retry", config.output, "--reason", "http_5xx"]
    for pattern in ("plan-r1/plan.json", "work-r1/chunk-*.json", "part-r1-*.parquet"):
        driver = Driver(tmp_path, command, address)
        assert driver.until(lambda wanted=pattern: glob(f"{config.output}/{wanted}")), driver.log
        driver.kill()
        assert open_dataset(config.output).manifest["counts"]["kept"] == ROWS // 2 - 1
        assert verify(config.output) == []  # the set that was there is as it was
        with pytest.raises(ConfigError, match="retry with --reason http_5xx has not finished"):
            retry(config.output, ["http_4xx"])
    run(config)  # must leave the unfinished retry alone
    driver = Driver(tmp_path, command, address)
    assert driver.wait() == 0, driver.log
    assert len(set(keys_of(config.output))) == len(keys_of(config.output)) == ROWS - 1
    assert open_dataset(config.output).manifest["generation"] == 1
    assert verify(config.output) == []
    assert_only_whole_files(config.output)


def test_reasons_that_cannot_be_retried(ray_cluster, server, tmp_path, capsys):
    config = small_config(tmp_path, [listed(tmp_path, server, range(3))])
    run(config)
    assert main(["retry", config.output, "--reason", "timout"]) == 2
    error = capsys.readouterr().err
    assert "'timout' is none of" in error
    assert "timeout, http_429, http_4xx" in error
    with pytest.raises(ConfigError, match="'duplicate_url' would be the same another time"):
        retry(config.output, ["timeout", "duplicate_url"])
    with pytest.raises(ConfigError, match="changes only how rows are downloaded"):
        retry(config.output, ["timeout"], ["filters.min_side_px=1"])
    with pytest.raises(DataError, match="has not finished"):
        retry(str(tmp_path / "nothing"), ["timeout"])


def duplicates(key: str) -> str:
    return f"duplicates key {key}"


def await_or_fail(happened) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)
