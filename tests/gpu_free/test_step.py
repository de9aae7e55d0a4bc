"""One step of CAFT-B on a GPU that computes nothing: what it asks of the device and the host."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMAGES = 16

if shutil.which("g++") is None:
    pytest.skip("the fake device is C++", allow_module_level=True)


@pytest.fixture(scope="module")
def step(tmp_path_factory):
    """A function that runs the steps of `overrides` in a process of its own: events and counts of
    the last."""

    def run(*overrides):
        out = tmp_path_factory.mktemp("step") / "counts.json"
        command = [sys.executable, ROOT / "benchmarks" / "gpu_free" / "step.py", f"--out={out}"]
        own = [f"--images={IMAGES}", f"batch_norm_images={IMAGES}", f"block_size={IMAGES}"]
        done = subprocess.run([*command, *own, *overrides], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(out.read_text())

    return run


@pytest.fixture(scope="module")
def plain(step):
    return step()


def waits(counted):
    """Where the host waits for the device."""
    return {
        event["site"].split(" < ")[0].split(":")[0]
        for event in counted["events"]
        if event["kind"] == "sync" or (event["kind"] in ("h2d", "d2h") and event["blocking"])
    }


def test_at_zero_0_the_host_waits_for_nothing_that_a_step_computes(plain):
    assert waits(plain) == set()
    reads = [e["site"] for e in plain["events"] if e["kind"] == "event"]
    assert len(reads) == 2, reads  # guard and signals, of the step before


def test_at_zero_1_deepspeed_alone_waits_and_gradients_travel_in_float32(step):
    counted = step("deepspeed.zero_stage=1")
    assert all(site.startswith("deepspeed/") for site in waits(counted)), waits(counted)
    sums = [e for e in counted["events"] if "reduce" in e["detail"] and e["bytes"] > 2**20]
    weights = [e for e in sums if e["site"].startswith("deepspeed/")]
    assert sum(e["bytes"] for e in weights) > 600e6
    assert {e["dtype"] for e in weights} == {"float32"}
