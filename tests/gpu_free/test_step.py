"""One step of CAFT-B on a GPU that computes nothing: what it asks of the device and the host."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMAGES = 16
pytestmark = pytest.mark.timeout(900)  # of a busy machine; half a minute on an idle one

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
def recipe(step):
    return step()


def waits(counted):
    """Where the host waits for the device."""
    return {
        event["site"].split(" < ")[0].split(":")[0]
        for event in counted["events"]
        if event["kind"] == "sync" or (event["kind"] in ("h2d", "d2h") and event["blocking"])
    }


def test_the_host_waits_for_nothing_that_a_step_computes(recipe):
    assert waits(recipe) == set()
    reads = [e["site"] for e in recipe["events"] if e["kind"] == "event"]
    assert len(reads) == 2, reads  # guard and signals, of the step before


def test_batches_travel_from_pinned_memory_beside_training(recipe):
    large = [e for e in recipe["events"] if e["kind"] == "h2d" and e["bytes"] > 2**20]
    assert large
    assert all(e["pinned"] and not e["blocking"] and e["stream"] == "side" for e in large), large


def test_texts_attend_within_themselves_and_no_mask_is_made_of_them(recipe):
    attention = [e["detail"] for e in recipe["events"] if e["kind"] == "attention"]
    forward = [detail for detail in attention if detail.startswith("varlen_attn (")]
    assert len(forward) == 8, attention
    masked = [detail for detail in attention if " mask " in detail]
    assert all("(16, 12, " in detail for detail in masked), masked  # superpixels alone


def test_a_step_launches_and_moves_no_more_than_it_did(recipe):
    counts = recipe["counts"]
    assert sum(count["kernels"] for count in counts) < 2_400
    assert sum(count["bytes"] for count in counts) < 33e9
    assert len(recipe["graphs"]) <= 9  # one graph of a pair of blocks serves all eight


def test_gradients_travel_in_float32_while_backward_runs(recipe):
    sums = [e for e in recipe["events"] if e["kind"] == "collective" and e["later"]]
    assert sum(e["bytes"] for e in sums) == pytest.approx(676.9e6, rel=1e-3)
    assert {e["dtype"] for e in sums} == {"float32"}
    moved = sum(count["bytes"] for count in recipe["counts"])
    last = max(e["bytes_before"] for e in sums)
    early = [e["bytes"] for e in sums if last - e["bytes_before"] > 0.05 * moved]
    assert sum(early) > 400e6  # of images, while those of texts are computed


@pytest.mark.slow
def test_at_zero_1_deepspeed_alone_waits_and_gradients_travel_in_float32(step):
    counted = step("deepspeed.zero_stage=1", "scaling.compile=false")
    assert all(site.startswith("deepspeed/") for site in waits(counted)), waits(counted)
    sums = [e for e in counted["events"] if "reduce" in e["detail"] and e["bytes"] > 2**20]
    weights = [e for e in sums if e["site"].startswith("deepspeed/")]
    assert sum(e["bytes"] for e in weights) > 600e6
    assert {e["dtype"] for e in weights} == {"float32"}
