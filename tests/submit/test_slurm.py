"""Jobs of SLURM as they are written: what the script asks for, its ports, and what is refused."""

import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from caft.errors import ClusterError
from pipelines.submit.__main__ import SETTINGS, main
from pipelines.submit.chain import Step, connect_steps, parse
from pipelines.submit.local_cluster import REPOSITORY
from pipelines.submit.slurm import RUNS, TEMPLATE, SlurmJobs, resources, script

DATA = Step("data", "configs/data/demo.yaml", ("output=/shared/a set",))
TRAIN = Step("train", "configs/train/caft_b_3m.yaml", ("output=/shared/run",))


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


@pytest.fixture
def written(tmp_path) -> Path:
    """The script of a chain whose words need quotes."""
    steps = connect_steps([DATA, TRAIN])
    path = tmp_path / "job.sbatch"
    path.write_text(script(steps, ["--job-name=it's one", "--time=1:00:00"], {"A": "two words"}))
    return path


def test_the_script_is_sound(written):
    subprocess.run(["bash", "-n", written], check=True)
    if shutil.which("shellcheck"):
        for path in (written, TEMPLATE):
            check = subprocess.run(["shellcheck", path], capture_output=True, text=True)
            assert check.returncode == 0, check.stdout


def test_options_stand_before_the_first_command_and_words_survive_the_shell(written):
    text = written.read_text()
    head = text[: text.index("export A=")]
    assert not [line for line in head.splitlines() if not line.startswith("#")]
    assert "#SBATCH --time=1:00:00\n" in head
    (line,) = re.findall("^set -- .*", text, re.M)
    printed = subprocess.run(
        ["bash", "-c", f'{line}; printf "%s\\0" "$@"'], capture_output=True, text=True, check=True
    )
    assert parse(printed.stdout.split("\0")[:-1]) == connect_steps([DATA, TRAIN])


def test_ports_of_neighbouring_jobs_differ():
    """Four ports a job, outside of what Ray deals to workers and the kernel to connections."""
    (line,) = re.findall(r"^ports_from\(\).*", TEMPLATE.read_text(), re.M)
    numbers = [*range(1, 9), *range(2_998, 3_004), 4_294_967_290]
    calls = "; ".join(f"ports_from {number}" for number in numbers)
    printed = subprocess.run(
        ["bash", "-c", f"{line}\n{calls}"], capture_output=True, text=True, check=True
    )
    firsts = [int(word) for word in printed.stdout.split()]
    assert all(first in range(20_000, 32_000, 4) for first in firsts)
    for job, first in zip(numbers, firsts, strict=True):
        near = [f for j, f in zip(numbers, firsts, strict=True) if 0 < abs(j - job) < 100]
        assert all(abs(first - other) >= 4 for other in near)


def test_the_script_sets_what_submit_sets():
    text = TEMPLATE.read_text()
    for name, value in SETTINGS.items():
        assert re.search(rf"^export .*\b{name}={value}\b", text, re.M), name


def test_nodes_are_asked_for_what_the_training_takes():
    assert resources([TRAIN], []) == ["--cpus-per-task=80", "--gpus-per-node=8"]
    assert resources([TRAIN], ["--nodes=2"]) == ["--cpus-per-task=40", "--gpus-per-node=4"]
    assert resources([DATA], []) == ["--cpus-per-task=2"]


def fake(folder: Path, name: str, body: str, monkeypatch) -> None:
    """One of SLURM's commands."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o700)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_a_job_is_kept_where_it_was_submitted(tmp_path, monkeypatch):
    """The copy of the code, the script, and the modes of folders that hold a token later."""
    commands = tmp_path / "bin"
    commands.mkdir()
    fake(commands, "sbatch", "echo '417;cluster'", monkeypatch)
    fake(commands, "squeue", "echo '417 PENDING (Priority)'", monkeypatch)
    checkout = tmp_path / "checkout"
    (checkout / "configs").mkdir(parents=True)
    (checkout / "configs" / "data.yaml").write_text("output: /x")
    monkeypatch.chdir(checkout)
    jobs = SlurmJobs(checkout)
    for _ in range(2):  # the same code is copied once
        job, lines = jobs.submit([], "study", ["--time=5"], {"A": "b"})
    assert job == "417"
    assert lines[0].startswith("1 files of ")
    (code,) = checkout.glob("runs/slurm/code-*")
    assert (code / "configs" / "data.yaml").read_text() == "output: /x"
    kept = checkout / RUNS / "417"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    assert f"#SBATCH --chdir={code}\n" in (kept / "job.sbatch").read_text()
    assert jobs.state("417") == "PENDING (Priority)"
    assert jobs.all() == [("417", "PENDING", "study")]
    assert sorted(path.name for path in (checkout / RUNS).iterdir()) == ["417", code.name]
    with pytest.raises(ClusterError, match=r"418: no job of .*runs/slurm"):
        jobs.state("418")


def test_what_a_job_of_this_folder_ended_with(tmp_path, monkeypatch):
    for name in ("squeue", "scontrol"):
        fake(tmp_path, name, "true", monkeypatch)
    jobs, printed = SlurmJobs(tmp_path), []
    for job, code, state in (("1", 0, "COMPLETED"), ("2", 2, "FAILED"), ("3", 143, "CANCELLED")):
        kept = tmp_path / RUNS / job
        kept.mkdir(parents=True)
        (kept / "job.sbatch").touch()
        (kept / "exit_code").write_text(f"{code}\n")
        (kept.parent / f"{job}.log").write_text(f"wörter of {job}\n")
        assert jobs.state(job) == state
        assert jobs.follow(job, printed.append) == code
    assert "".join(printed) == "wörter of 1\nwörter of 2\nwörter of 3\n"


def test_following_a_job_outlasts_a_controller_that_is_restarted(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.submit.slurm.LOOK_EVERY_S", 0.01)
    asked = tmp_path / "asked"
    fake(tmp_path, "squeue", f"[ -e {asked} ] || {{ touch {asked}; exit 1; }}", monkeypatch)
    kept = tmp_path / RUNS / "1"
    kept.mkdir(parents=True)
    (kept / "job.sbatch").touch()
    (kept / "exit_code").write_text("0")
    assert SlurmJobs(tmp_path).follow("1", str) == 0
    assert asked.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "--cluster", "slurm"], "--cluster slurm: squeue is not installed here"),
        (["data", "configs/data/demo.yaml", "--cluster", "slurm"], "is relative"),
        (["list", "--cluster", "http://x", "--sbatch=--time=1"], "--sbatch --time=1: is for"),
    ],
)
def test_errors_are_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1


def test_sbatch_says_why_it_refuses(tmp_path, monkeypatch, capsys):
    fake(
        tmp_path, "sbatch", "echo 'sbatch: error: invalid partition: gpu' >&2; exit 1", monkeypatch
    )
    monkeypatch.setattr("pipelines.submit.slurm.RUNS", tmp_path / "runs")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # else set by the command
    words = ["data", "configs/data/demo.yaml", f"output={tmp_path}/set", f"tracking.uri={uri}"]
    assert main([*words, "--cluster", "slurm:gpu"]) == 2
    said = "ClusterError: sbatch: sbatch: error: invalid partition: gpu"
    assert said in capsys.readouterr().err
