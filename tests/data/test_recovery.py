"""Kill -9 of the driver, of workers and of whole clusters: never a row lost, never one twice."""

import os
import random
import signal
import threading
import time
from contextlib import suppress
from glob import glob

import psutil
import pytest
import ray
from stage_support import (
    Driver,
    assert_only_whole_files,
    assert_same,
    busy_workers,
    decoders,
    drive,
)

from pipelines.data.stage import run
from pipelines.ownership import CLAIM

SEED = 20260
CHANGES = ("chunk_rows=16", "duplicates.near_distance=12", "download.timeout_s=3", "file_mb=1")
PHASES = {
    "plan": ("plan/*.parquet", 24),
    "chunks": ("work/chunk-*.json", 12),
    "duplicates": ("work/pairs-*.parquet", 5),
    "files": ("work/files-*.json", 3),
}


@pytest.fixture(scope="module")
def address(ray_cluster):
    return ray.get_runtime_context().gcs_address


@pytest.fixture(scope="module")
def undisturbed(ray_cluster, make_data_config, tmp_path_factory) -> str:
    output = str(tmp_path_factory.mktemp("undisturbed") / "data")
    run(make_data_config(output, *CHANGES))
    return output


class Chance:
    """Random points of a run, the same ones at every test run, said as they are used."""

    def __init__(self, output: str, seed: int) -> None:
        self._output, self._random = output, random.Random(seed)

    def reached(self, phase: str):
        """A condition: that some of a phase's files are there, and up to 0.3 s more."""
        pattern, most = PHASES[phase]
        count, more_s = self._random.randint(1, most), self._random.uniform(0, 0.3)
        print(f"kill: {phase}, {count} of {pattern}, {more_s:.2f} s later")

        def condition() -> bool:
            if len(glob(f"{self._output}/{pattern}")) < count:
                return False
            time.sleep(more_s)
            return True

        return condition


@pytest.mark.slow
def test_the_driver_is_killed_again_and_again(undisturbed, make_data_config, address, tmp_path):
    """And once it is asked to end, which leaves whole files and says how to go on."""
    config = make_data_config(str(tmp_path / "data"), *CHANGES)
    chance = Chance(config.output, SEED)
    for phase in PHASES:
        driver = drive(tmp_path, config, address)
        assert driver.until(chance.reached(phase)), driver.log
        if phase != "duplicates":
            driver.kill()
            continue
        os.kill(driver.process.pid, signal.SIGINT)
        assert driver.wait() == 130, driver.log
        assert "interrupted; run the same command again to go on" in driver.log
        assert "Traceback" not in driver.log
        time.sleep(2)  # whatever the cluster still does for the job
        assert_only_whole_files(config.output)
    driver = drive(tmp_path, config, address)
    assert driver.wait() == 0, driver.log
    assert_same(config.output, undisturbed)


def test_a_second_driver_ends_and_one_that_waits_finds_it_done(make_data_config, address, tmp_path):
    config = make_data_config(str(tmp_path / "data"), *CHANGES)
    first = drive(tmp_path, config, address)
    claim = tmp_path / "data" / CLAIM
    assert first.until(claim.exists), first.log
    waiting = Driver(tmp_path, [*first.argv, "--wait"], address)
    second = drive(tmp_path, config, address)
    assert second.wait() == 2
    (said,) = (line for line in second.log.splitlines() if "OwnedError" in line)
    assert f"{config.output}: is being written by data on " in said
    assert f"(process {first.process.pid})" in said
    assert first.wait() == 0, first.log
    assert waiting.wait() == 0, waiting.log
    assert "finished before" in waiting.log
    assert not claim.exists()


@pytest.mark.slow
def test_workers_are_killed_while_the_run_goes_on(undisturbed, make_data_config, tmp_path):
    config = make_data_config(str(tmp_path / "data"), *CHANGES)
    chance = random.Random(SEED + 1)
    over = threading.Event()
    killed = []

    def kill() -> None:
        while len(killed) < 4:  # a chunk may be started five times
            pause_s = chance.uniform(0.1, 1.0)
            if over.wait(pause_s):
                return
            if busy := busy_workers():
                print(f"kill: a busy worker, {pause_s:.2f} s after the last look")
                victim = chance.choice(busy)
                victim.kill()
                killed.append(victim)

    killer = threading.Thread(target=kill)
    killer.start()
    run(config)
    over.set()
    killer.join()
    assert len(killed) == 4
    assert_same(config.output, undisturbed)


@pytest.mark.slow
def test_the_whole_cluster_is_killed(undisturbed, make_data_config, tmp_path):
    config = make_data_config(str(tmp_path / "data"), *CHANGES)
    driver = drive(tmp_path, config, None)
    assert driver.until(Chance(config.output, SEED + 2).reached("chunks")), driver.log
    driver.kill(whole_cluster=True)
    driver = drive(tmp_path, config, None)
    assert driver.wait() == 0, driver.log
    assert_same(config.output, undisturbed)


def test_no_row_is_lost_to_killed_decoders(undisturbed, make_data_config, tmp_path):
    config = make_data_config(str(tmp_path / "data"), *CHANGES)
    over = threading.Event()
    killed, seen = [], {}

    def kill() -> None:
        """Every other decoder of each worker: an image is tried twice, and not more often."""
        while not over.wait(0.1):
            for decoder in decoders():
                with suppress(psutil.NoSuchProcess):
                    if decoder.pid not in seen:
                        seen[decoder.pid] = decoder.ppid()
                        if list(seen.values()).count(decoder.ppid()) % 2:
                            decoder.kill()
                            killed.append(decoder)

    killer = threading.Thread(target=kill)
    killer.start()
    run(config)
    over.set()
    killer.join()
    assert len(killed) >= 3
    assert_same(config.output, undisturbed)
