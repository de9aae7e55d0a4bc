"""Stages as jobs of SLURM: a script from cluster/slurm/caft.sbatch, submitted, watched and ended.
Used by submit; everything about a job is in `runs/slurm` of the folder it was submitted from."""

from __future__ import annotations

import codecs
import hashlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from pathlib import Path

from caft.errors import ClusterError
from pipelines.data.config import DataConfig
from pipelines.submit.chain import THEN, Step
from pipelines.submit.local_cluster import REPOSITORY
from pipelines.submit.package import pack
from pipelines.train.config import TrainConfig

TEMPLATE = REPOSITORY / "cluster" / "slurm" / "caft.sbatch"
PLACE = "# submit: its options and the command\n"  # in the template
RUNS = Path("runs/slurm")
LOOK_EVERY_S = 2.0
DATA_CPUS = 8  # where a data stage leaves to the cluster how many chunks are in work at a time
ANSWER_WITHIN_S = 60.0
PATIENCE_S = 600.0  # of what follows a job, with a controller that gives no answer
STOPPED = 143  # exit code of a job that a person has ended
# What squeue and scontrol call a job that is still to run or to end.
UNDER_WAY = (
    "PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "COMPLETING", "REQUEUED", "REQUEUE_HOLD",
    "REQUEUE_FED", "STAGE_OUT", "SIGNALING", "STOPPED", "RESIZING", "SPECIAL_EXIT", "RESV_DEL_HOLD",
)  # fmt: skip


class SlurmJobs:
    """Jobs that were submitted from a folder, through SLURM's own commands.

    Raises:
        ClusterError: SLURM's commands are not here, or SLURM refuses or does not answer.
    """

    def __init__(self, folder: Path) -> None:
        self._runs = folder / RUNS

    def submit(
        self,
        steps: Sequence[Step],
        name: str,
        options: Sequence[str],
        environment: Mapping[str, str],
    ) -> tuple[str, list[str]]:
        """Copy the code, write the script and submit it; the job's id, and lines
        that say what was copied.

        Args:
            options: of sbatch, such as `--time=24:00:00`; they win over what the steps ask for.
            environment: variables that the job's processes get besides those of this process.
        """
        code, copied = copy_code(self._runs)
        text = script(
            steps,
            [f"--job-name={name}", f"--chdir={code}", f"--output={self._runs}/%j.log",
             *resources(steps, options), *options],
            {**environment, "CAFT_SLURM": str(self._runs)},
        )  # fmt: skip
        with tempfile.TemporaryDirectory(dir=self._runs) as folder:
            path = Path(folder) / "job.sbatch"
            path.write_text(text)
            job = _slurm("sbatch", "--parsable", str(path)).split(";")[0].strip()
            kept = self._runs / job
            kept.mkdir(mode=0o700, exist_ok=True)
            shutil.move(path, kept / path.name)
        return job, copied

    def all(self) -> list[tuple[str, str, str]]:
        """(id, state, name) of each job, the newest first."""
        numbers = [int(path.name) for path in self._runs.glob("*") if path.name.isdecimal()]
        states, jobs = _queued(), []
        for job in map(str, sorted(numbers, reverse=True)):
            text = (self._runs / job / "job.sbatch").read_text()
            found = re.search(r"^#SBATCH --job-name='?(?!caft$)(.*?)'?$", text, re.M)
            state = states[job].split()[0] if job in states else self._ended(job)
            jobs.append((job, state, found[1] if found else "caft"))
        return jobs

    def state(self, job: str) -> str:
        """SLURM's word for the job and, of a waiting one, why it waits.

        Raises:
            ClusterError: no job of this folder has that id.
        """
        if not (self._runs / job / "job.sbatch").exists():
            raise ClusterError(
                f"{job}: no job of {self._runs}; `list` shows those that were submitted from here"
            )
        return _queued().get(job) or self._ended(job)

    def log(self, job: str) -> str:
        """What the job has printed so far, in all its starts."""
        self.state(job)
        path = self._runs / f"{job}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def follow(self, job: str, write: Callable[[str], object]) -> int:
        """Pass the job's log on as it grows, until it ends; its exit code. A job that waits, or is
        requeued, is waited for."""
        read, told = 0, ""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        path = self._runs / f"{job}.log"
        while True:
            state = self._patient_state(job)  # before the log, whose end is then not missed
            if path.exists():
                with open(path, "rb") as stream:
                    stream.seek(read)
                    data = stream.read()
                read += len(data)
                write(decoder.decode(data))
            word = state.split()[0]
            if word not in UNDER_WAY:
                return self._exit_code(job, word)
            if word == "PENDING" and state != told:
                write(f"submit: {job} is {state}\n")
                told = state
            time.sleep(LOOK_EVERY_S)

    def _patient_state(self, job: str) -> str:
        """The state, also where SLURM's controller is restarted meanwhile."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self.state(job)
            except ClusterError:
                if time.monotonic() > deadline or not (self._runs / job).exists():
                    raise
            time.sleep(LOOK_EVERY_S)

    def stop(self, job: str) -> None:
        """Ask a job to save and end, without being requeued; one that waits leaves the queue."""
        word = self.state(job).split()[0]
        if word == "PENDING":
            _slurm("scancel", job)
        elif word in UNDER_WAY:
            _slurm("scancel", "--batch", "--signal=TERM", job)

    def _ended(self, job: str) -> str:
        """The state of a job that is not in the queue: by its own exit code, else by SLURM, which
        forgets a job after some minutes."""
        path = self._runs / job / "exit_code"
        if path.exists():
            return {"0": "COMPLETED", str(STOPPED): "CANCELLED"}.get(
                path.read_text().strip(), "FAILED"
            )
        shown = subprocess.run(
            ["scontrol", "show", "job", job], capture_output=True, text=True, check=False
        )
        found = re.search(r"JobState=(\w+)", shown.stdout)
        return found[1] if found else "ENDED, by SLURM; see its log"

    def _exit_code(self, job: str, word: str) -> int:
        path = self._runs / job / "exit_code"
        if path.exists():
            return int(path.read_text())
        return 0 if word == "COMPLETED" else 1


def copy_code(runs: Path) -> tuple[Path, list[str]]:
    """A copy of the working directory, without what `pack` leaves out, below `runs`: a job that
    waits for days, or is requeued, runs what was submitted. The same code is copied once.

    Returns:
        The folder, and lines that say what it holds.
    """
    runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=runs) as folder:
        package = pack(Path.cwd(), Path(folder))
        code = runs / f"code-{hashlib.sha256(package.path.read_bytes()).hexdigest()[:12]}"
        if not code.exists():
            unpacked = Path(folder) / "code"
            with zipfile.ZipFile(package.path) as archive:
                archive.extractall(unpacked)
            unpacked.rename(code)
        return code, package.described()


def resources(steps: Sequence[Step], options: Sequence[str]) -> list[str]:
    """What sbatch is asked for on each node, so that the largest training finds room."""
    nodes = 1
    for option in options:
        if found := re.fullmatch(r"(?:--nodes=|-N ?)(\d+)", option):
            nodes = int(found[1])
    cpus, gpus = 2, 0
    for step in steps:
        config = step.load()
        if isinstance(config, DataConfig):
            cpus = max(cpus, ceil((config.concurrency or DATA_CPUS) / nodes))
        if isinstance(config, TrainConfig):
            scaling = config.scaling
            workers = ceil(scaling.workers_range[1] / nodes)
            each = scaling.cpus_per_worker + config.ingest.loaders_per_worker
            cpus = max(cpus, ceil(workers * each))
            gpus = max(gpus, workers if scaling.use_gpu else 0)
    return [f"--cpus-per-task={cpus}", *([f"--gpus-per-node={gpus}"] if gpus else [])]


def script(steps: Sequence[Step], options: Sequence[str], environment: Mapping[str, str]) -> str:
    """The template with options of sbatch, variables and the chain's command line.

    Raises:
        ClusterError: there is no template, because this is no checkout.
    """
    if not TEMPLATE.exists():
        raise ClusterError(f"{TEMPLATE}: no such file; submit to SLURM from a checkout of CAFT")
    words: list[str] = []
    for number, step in enumerate(steps):
        words += [*([THEN] if number else []), step.stage, step.config, *step.overrides]
    lines = [
        *(f"#SBATCH {shlex.quote(option)}" for option in options),
        *(f"export {name}={shlex.quote(value)}" for name, value in environment.items()),
        f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH",
        f"set -- {shlex.join(words)}",
    ]
    return TEMPLATE.read_text().replace(PLACE, "\n".join(lines) + "\n")


def _queued() -> dict[str, str]:
    """SLURM's word for each of the user's jobs that has not ended, and why it waits."""
    lines = _slurm("squeue", "--me", "--noheader", "--format=%A %T (%r)").splitlines()
    return {
        job: state.removesuffix(" (None)") for job, _, state in (s.partition(" ") for s in lines)
    }


def _slurm(*command: str) -> str:
    """What one of SLURM's commands prints."""
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=ANSWER_WITHIN_S, check=False
        )
    except FileNotFoundError:
        raise ClusterError(
            f"--cluster slurm: {command[0]} is not installed here; run this on a log-in node of "
            "the SLURM cluster"
        ) from None
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{command[0]}: no answer in {ANSWER_WITHIN_S:g} s") from None
    if run.returncode != 0:
        raise ClusterError(f"{command[0]}: {' '.join(run.stderr.split()) or run.returncode}")
    return run.stdout
