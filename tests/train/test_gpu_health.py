"""Cards that have failed are named by node and number, and no worker group is given them."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.train import gpu_health
from pipelines.train.gpu_health import faults, watch_xids

FAKE = Path(__file__).parents[1] / "fixtures" / "fake_nvml"
TRAINS_ON = """
import ray
from pipelines.train.gpu_health import Quarantine
ray.init(num_cpus=2, num_gpus=3, include_dashboard=False, logging_level="error")
quarantine = Quarantine()
quarantine.update()
quarantine.update()  # what it holds is not reported again

@ray.remote(num_gpus=1)
class Worker:
    def card(self):
        return ray.get_gpu_ids()[0]

workers = [Worker.remote() for _ in range(2)]
print("given", sorted(ray.get([worker.card.remote() for worker in workers])))
_, waiting = ray.wait([Worker.remote().card.remote()], timeout=2)
print("a third waits", len(waiting))
"""


@pytest.fixture
def cards(tmp_path, monkeypatch):
    """Sets what the machine's cards are."""
    monkeypatch.syspath_prepend(FAKE)
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    monkeypatch.setattr(gpu_health, "FOLDER", tmp_path / "faults")
    file = tmp_path / "cards"
    monkeypatch.setenv("CARDS_FILE", str(file))
    yield lambda *lines: file.write_text("\n".join(lines))
    sys.modules.pop("pynvml", None)


def test_what_has_failed_is_named(cards):
    cards("ecc=0", "no_ecc", "ecc=2 remap=1", "lost")
    assert [faults(n) for n in range(4)] == [
        [],
        [],
        ["2 uncorrectable ECC errors", "rows of memory that cannot be remapped"],
        ["it does not answer (GPU is lost)"],
    ]


@pytest.mark.parametrize(("xid", "found"), [(79, ["Xid 79"]), (31, [])])
def test_an_xid_of_the_hardware_is_known_to_whoever_asks_after_the_worker(cards, xid, found):
    cards("", f"xid={xid}")
    watch_xids(1).join(10)
    cards("", "")
    assert [faults(0), faults(1)] == [[], found]


def test_an_xid_from_before_the_machine_restarted_counts_no_more(cards, monkeypatch, tmp_path):
    cards("xid=79")
    watch_xids(0).join(10)
    boot = tmp_path / "boot"
    boot.write_text("another")
    monkeypatch.setattr(gpu_health, "BOOT", boot)
    cards("")
    assert faults(0) == []


def test_without_the_library_or_a_driver_nothing_is_said(monkeypatch):
    monkeypatch.delenv("CARDS_FILE", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert faults(0) == []
    assert watch_xids(0) is None


def test_no_worker_is_given_a_failed_card(tmp_path):
    (tmp_path / "cards").write_text("\necc=3\n")
    repository = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", TRAINS_ON],
        capture_output=True,
        text=True,
        timeout=250,
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            "PYTHONPATH": f"{FAKE}:{repository}",
            "CARDS_FILE": str(tmp_path / "cards"),
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        },
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stdout.splitlines() if not line.startswith("(")]
    (said,) = [line for line in lines if line.startswith("train:")]
    assert said.startswith("train: node ")
    assert ": card 1 has failed: 3 uncorrectable ECC errors; no worker is given it" in said
    assert "given [0, 2]" in lines
    assert "a third waits 1" in lines
