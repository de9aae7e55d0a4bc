"""The acceptance of a machine with GPUs, in the small form that runs without one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUICK = ("environment", "parity", "all_reduce", "step", "batches")
pytestmark = pytest.mark.timeout(900)  # of a busy machine


def accept(out, sections):
    command = [sys.executable, ROOT / "benchmarks" / "gpu_acceptance.py", "--out", out, "--only"]
    done = subprocess.run([*command, *sections], capture_output=True, text=True, cwd=out.parent)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads((out / "acceptance.json").read_text()), done.stdout


def test_it_prints_what_was_predicted_beside_what_was_measured(tmp_path):
    result, printed = accept(tmp_path / "out", QUICK)
    assert result["failed"] == {}
    assert set(result["sections"]) == set(QUICK)
    assert "No number counts." in printed
    assert "**FAILS**" not in printed
    assert "| part | predicted ms | measured ms |" in printed
    for part in ("superpixels", "encode", "loss forward", "backward", "optimiser"):
        row = next(line for line in printed.splitlines() if line.startswith(f"| {part} |"))
        predicted, measured = (float(cell) for cell in row.split("|")[2:4])
        assert predicted > 0
        assert measured >= 0
    assert (tmp_path / "out" / "step_trace.json.gz").stat().st_size > 10_000


def test_a_section_that_fails_is_named_and_leaves_the_others(tmp_path, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "no such thing")
    out = tmp_path / "out"
    command = [sys.executable, ROOT / "benchmarks" / "gpu_acceptance.py", "--out", out]
    command += ["--only", "step", "environment"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    result = json.loads((out / "acceptance.json").read_text())
    assert set(result["failed"]) == {"step"}
    assert set(result["sections"]) == {"environment"}
    assert "**FAILS**: step: " in done.stdout
    assert "step.log" in done.stdout


@pytest.mark.slow
def test_ingest_training_and_the_plain_path_are_measured_too(tmp_path):
    result, printed = accept(tmp_path / "out", ("ingest", "training", "plain"))
    assert result["failed"] == {}
    assert result["sections"]["training"]["steps"] == 4
    assert result["sections"]["ingest"]["ours (Ray Data)"]["images_per_s"] > 0
    assert "| recall | chance | here |" in printed
