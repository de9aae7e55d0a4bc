"""Kill -9 of the driver, of workers and of whole clusters: never a row lost, never one twice."""

import os
import random
import signal
import threading
import time
from glob import glob

import pytest
import ray
from stage_support import (
    assert_only_whole_files,
    assert_same,
    decoders,
    drive,
    ray_workers,
)

from pipelines.data.stage import run

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

    def choose(self, some: list):
        return self._random.choice(some)


def test_the_driver_is_killed_again_and_again(undisturbed, make_data_config, address, tmp_path):
    config = make_data_config(str(tmp_path / "data"), *CHANGES)
    chance = Chance(config.output, SEED)
    for phase in PHASES:
        driver = drive(tmp_path, config, address)
        assert driver.until(chance.reached(phase)), driver.log
        driver.kill()
    driver = drive(tmp_path, config, address)
    assert driver.wait() == 0, driver.log
    assert_same(config.output, undisturbed)
