"""A chain on SLURM itself: requeued at its time limit, stopped, resumed, and as if undisturbed."""

import os
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from chain_support import write_chain
from slurm_support import INSTALLED, Slurm
from stage_support import last_step

from caft.checkpoint import read_manifest
from pipelines.submit.local_cluster import REPOSITORY, LocalCluster, Ports, Processes
from pipelines.train.checkpoints.store import CheckpointStore

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not INSTALLED, reason="needs root, slurm-wlm and munge"),
    pytest.mark.timeout(2400),
]
PATIENCE_S = 900.0


class Checkout:
    """A copy of this repository's code with a chain, and `submit` in it."""

    def __init__(self, folder: Path, slurm: Slurm, sample: Path) -> None:
        self.folder = folder
        for name in ("caft", "pipelines", "configs", "cluster"):
            shutil.copytree(
                REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        self.outputs = folder.with_name("outputs")
        write_chain(folder / "chain", str(sample), "127.0.0.1", str(self.outputs))
        self._slurm = slurm

    def chain(self, name: str, *stages: str, **train: str) -> str:
        """A chain of some of the stages, with keys of the training set; its path."""
        chain = yaml.safe_load((self.folder / "chain/chain.yaml").read_text())
        chain["stages"] = [step for step in chain["stages"] if step["stage"] in stages]
        for step in chain["stages"]:
            step["config"] = f"chain/{step['config']}"
            if step["stage"] == "train":
                train["model"] = "chain/tiny.yaml"  # as seen from the checkout
                kept = [key for key in step["set"] if key.split("=")[0] not in train]
                step["set"] = [*kept, *(f"{key}={value}" for key, value in train.items())]
        (self.folder / "chain" / name).write_text(yaml.safe_dump(chain))
        return f"chain/{name}"

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pipelines.submit", *arguments, "--cluster", "slurm:short"],
            cwd=self.folder, env=self._slurm.environment | {"PYTHONPATH": ""}, text=True,
            capture_output=True, timeout=PATIENCE_S,
        )  # fmt: skip

    def submit(self, chain: str) -> str:
        """The id of a job that runs a chain."""
        run = self("chain", chain, "--detach", "--sbatch=--cpus-per-task=4", "--sbatch=--time=50")
        assert run.returncode == 0, run.stderr
        return re.findall(r"submit: job (\d+)", run.stdout)[0]

    def log(self, job: str) -> str:
        path = self.folder / f"runs/slurm/{job}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def until(self, job: str, happened) -> None:
        """Wait for something about a job that has not ended."""
        deadline = time.monotonic() + PATIENCE_S
        while not happened(self.log(job)):
            assert time.monotonic() < deadline, self.log(job)[-5000:]
            assert not (self.folder / f"runs/slurm/{job}/exit_code").exists(), self.log(job)[-5000:]
            time.sleep(0.5)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    slurm = Slurm(tmp_path_factory.mktemp("slurm"))
    slurm.start()
    yield slurm
    slurm.stop()


@pytest.fixture(scope="module")
def checkout(slurm, sample, tmp_path_factory):
    return Checkout(tmp_path_factory.mktemp("slurm-user") / "checkout", slurm, sample.folder)


def processes_of(job: str) -> list[psutil.Process]:
    """Those that SLURM has started for a job, and what they started."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("SLURM_JOB_ID") == job:
                found.append(process)
        except psutil.Error:
            continue
    return found


def private_to_its_job(checkout: Checkout, job: str) -> bool:
    """Whether the token and Ray's folder are the user's alone."""
    token = checkout.folder / f"runs/slurm/{job}/token"
    (temporary,) = Path("/tmp").glob(f"caft-{job}.*")
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    return stat.S_IMODE(temporary.stat().st_mode) == 0o700


def test_a_job_that_waits_is_listed_and_leaves_the_queue(checkout):
    run = checkout(
        "data", "configs/data/demo.yaml", f"output={checkout.outputs}/none", "--detach",
        "--sbatch=--begin=now+1hour", "--name", "later",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    job = re.findall(r"submit: job (\d+)", run.stdout)[0]
    assert checkout("status", job).stdout == "PENDING (BeginTime)\n"
    assert re.search(rf"{job} +PENDING +later", checkout("list").stdout)
    assert checkout("stop", job).returncode == 0
    assert checkout("status", job).stdout == "CANCELLED\n"
    refused = checkout("data", "configs/data/demo.yaml", "output=/x", "--sbatch=--partition=none")
    assert refused.returncode == 2
    assert "invalid partition" in refused.stderr


def test_a_job_killed_at_its_limit_and_stopped_ends_as_if_undisturbed(
    checkout, slurm, tmp_path, monkeypatch
):
    """Checkpoints are those that the ends ask for, and no others; another of the user's clusters
    is on the node all the time."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    other = LocalCluster(tmp_path / "other", Processes(tmp_path / "pids.json"), Ports.free(), 1)
    other.start()
    try:
        # The number of workers stays: it decides how sums are rounded.
        train = {"epochs": "20", "checkpoint.every_steps": "100000", "scaling.num_workers": "1"}
        chain = checkout.chain("all.yaml", "data", "train", "evaluate", **train)
        job = checkout.submit(chain)
        checkout.until(job, lambda log: last_step(log) >= 5)
        assert private_to_its_job(checkout, job)
        minutes = re.findall(r"(\d+):\d+$", slurm("squeue", "--noheader", "--format=%M"), re.M)[0]
        slurm("scontrol", "update", f"JobId={job}", f"TimeLimit={int(minutes) + 3}")
        checkout.until(job, lambda log: "the time limit is near" in log)
        # The next start has the limit that this one was given, which may leave it no time at all.
        slurm("scontrol", "update", f"JobId={job}", "TimeLimit=50")
        store = CheckpointStore(str(checkout.outputs / "train"))
        checkout.until(job, lambda log: f"job {job}, start 2" in log)
        (saved,) = store.steps()
        assert saved >= 5
        read_manifest(store.path(saved), verify=True)
        checkout.until(job, lambda log: last_step(log.split("start 2")[1]) > saved)

        assert checkout("stop", job).returncode == 0
        assert checkout("logs", job, "--follow").returncode == 143
        assert checkout("status", job).stdout == "CANCELLED\n"
        assert f"data: finished before: {checkout.outputs}/data" in checkout.log(job)
        assert_nothing_left(checkout, job)

        again = checkout.submit(chain)
        assert checkout("logs", again, "--follow").returncode == 0, checkout.log(again)[-5000:]
        assert "chain: finished: data, train, evaluate" in checkout.log(again)
        assert checkout("status", again).stdout == "COMPLETED\n"
        assert_nothing_left(checkout, again)
        assert "report.html" in os.listdir(checkout.outputs / "evaluate")

        undisturbed = checkout.submit(
            checkout.chain(
                "undisturbed.yaml", "train", **train, dataset=f"{checkout.outputs}/data",
                output=f"{checkout.outputs}/undisturbed",
            )
        )  # fmt: skip
        assert checkout("logs", undisturbed, "--follow").returncode == 0
        first, second = (
            (checkout.outputs / run / "final/model.safetensors").read_bytes()
            for run in ("train", "undisturbed")
        )
        assert first == second
        assert Processes(tmp_path / "pids.json").alive("ray")
        listed = subprocess.run(
            [Path(sys.executable).parent / "ray", "job", "list", f"--address={other.address}"],
            env=other.environment, capture_output=True, check=False,
        )  # fmt: skip
        assert listed.returncode == 0
    finally:
        other.stop()


def assert_nothing_left(checkout: Checkout, job: str) -> None:
    deadline = time.monotonic() + 60
    while left := processes_of(job):
        assert time.monotonic() < deadline, left
        time.sleep(0.5)
    assert not list(Path("/tmp").glob(f"caft-{job}.*"))
    folder = checkout.folder / "runs/slurm" / job
    assert sorted(path.name for path in folder.iterdir()) == [
        "exit_code", "job.sbatch", "ray-0", "ray-0.log",
    ]  # fmt: skip
