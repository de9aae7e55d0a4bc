"""An hour of small jobs on three machines on which something fails all the time, and the ledger.

Machines are network namespaces (Linux, root, iproute2) with an S3 server, a tracking server on
PostgreSQL (SQLite where it is not installed) and a web server of images beside them. A job is the
chain data -> train -> evaluate, submitted again where it failed, as a user would. While it runs,
every 10 to 30 seconds a Ray worker is killed, a machine, or the tracking server, or S3 refuses
every third request for a while. The first job is left alone: what the others leave must equal it.

    PYTHONPATH=tests:tests/fixtures python benchmarks/soak.py [--minutes 60 --seed 0]
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from chain_support import Job, write_chain
from mlflow import MlflowClient
from stage_support import S3_BUCKET, keys_of
from world import LISTS_AT, World, world

from pipelines import storage
from pipelines.config import TrackingConfig
from pipelines.data.dataset import open_dataset
from pipelines.runs import find_run

PAUSE_S, DOWN_S = (10.0, 30.0), 8.0  # between disturbances; how long one lasts
TRIES, JOB_S = 5, 900.0
SAME_LOSS = 1e-4  # relative
MIB = 2**20
SERVICES = ("gcs_server", "raylet", "dashboard", "DashboardAgent")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="caft-soak-") as folder, world(Path(folder)) as here:
        soak, chance = Soak(here), random.Random(args.seed)
        rounds = [soak.round(0, None)]
        ends = time.monotonic() + 60 * args.minutes
        print(HEADER, flush=True)
        while time.monotonic() < ends:
            rounds.append(soak.round(len(rounds), chance))
            print(line(rounds[-1], rounds[0]), flush=True)
            if more := left(rounds[-1], rounds[0]):
                print(f"left by job {len(rounds) - 1}: {dict(more)}", file=sys.stderr)
        report(rounds, [soak.losses(number) for number in range(len(rounds))], args.minutes)


@dataclass
class Round:
    """What one job left."""

    number: int
    seconds: float
    submitted: int
    disturbed: Counter[str]
    input_rows: int
    counted_rows: int  # kept or rejected
    keys: list[str]
    losses: dict[int, list[float]]  # by step
    processes: Counter[str]  # that are no services of Ray's, ten seconds after the job
    services_mib: Counter[str]  # of the head's Ray processes, by service


class Soak:
    """Jobs in a world of which a part fails now and then."""

    def __init__(self, here: World) -> None:
        self._here = here
        self._disturbed: Counter[str] = Counter()

    def round(self, number: int, chance: random.Random | None) -> Round:
        """One chain from its first submission until it is done."""
        outputs = f"s3://{S3_BUCKET}/run-{number}"
        folder = self._here.folder / f"run-{number}"
        write_chain(folder, LISTS_AT, self._here.hosts.address, outputs)
        over, started, self._disturbed = threading.Event(), time.monotonic(), Counter()
        killer = threading.Thread(target=self._disturb, args=(over, chance))
        if chance is not None:
            killer.start()
        submitted, code = 0, -1
        try:
            while code != 0 and submitted < TRIES:
                tracking = {"MLFLOW_TRACKING_URI": self._here.tracking_address}
                job = Job(folder, self._here.hosts, self._here.variables | tracking)
                submitted, code = submitted + 1, job.wait(JOB_S)
        finally:  # Ctrl-C too
            over.set()
            if chance is not None:
                killer.join()
        if code != 0:
            raise SystemExit(f"run {number} failed {TRIES} times:\n{job.log[-5000:]}")
        seconds = time.monotonic() - started
        time.sleep(10)  # workers that were let go end in this time
        counts = open_dataset(f"{outputs}/data").manifest["counts"]
        counted = counts["kept"] + sum(counts["rejected"].values())
        return Round(
            number, seconds, submitted, self._disturbed, counts["input_rows"], counted,
            keys_of(f"{outputs}/data"), self.losses(number), self._processes(),
            self._services_mib(),
        )  # fmt: skip

    def _disturb(self, over: threading.Event, chance: random.Random) -> None:
        kinds = {
            "worker": self._kill_worker,
            "machine": self._kill_machine,
            "tracking": self._interrupt_tracking,
            "S3": self._refuse_requests,
        }
        while not over.wait(chance.uniform(*PAUSE_S)):
            name = chance.choice(list(kinds))
            self._disturbed[name] += bool(kinds[name](chance))

    def _kill_worker(self, chance: random.Random) -> bool:
        found = [p for host in self._here.hosts.hosts[1:] for p in host.processes if _works(p)]
        if found:
            with suppress(psutil.NoSuchProcess):
                chance.choice(found).kill()
        return bool(found)

    def _kill_machine(self, chance: random.Random) -> bool:
        host = chance.choice(self._here.hosts.hosts[1:])
        host.kill()
        time.sleep(DOWN_S)
        self._here.start(host)
        return True

    def _interrupt_tracking(self, _: random.Random) -> bool:
        self._here.stop_tracking()
        time.sleep(DOWN_S)
        self._here.start_tracking()
        return True

    def _refuse_requests(self, _: random.Random) -> bool:
        self._here.s3.refuse_every = 3
        time.sleep(DOWN_S)
        self._here.s3.refuse_every = None
        return True

    def losses(self, number: int) -> dict[int, list[float]]:
        """By step, as the tracking server knows them now."""
        tracking = TrackingConfig(uri=self._here.tracking_address)
        known = storage.read_json(f"s3://{S3_BUCKET}/run-{number}/train/run.json")
        run_id = find_run(tracking, known["run_id"])
        losses: dict[int, list[float]] = {}
        client = MlflowClient(self._here.tracking_address)
        for metric in client.get_metric_history(run_id, "loss/total"):
            losses.setdefault(metric.step, []).append(metric.value)
        return losses

    def _processes(self) -> Counter[str]:
        found = [process for host in self._here.hosts.hosts for process in host.processes]
        return Counter(" ".join(process.cmdline()[:3]) for process in found if _works(process))

    def _services_mib(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for process in self._here.hosts.hosts[0].processes:
            with suppress(psutil.NoSuchProcess):
                line = " ".join(process.cmdline()[:4])
                for name in SERVICES:
                    if name in line:
                        found[name] += round(process.memory_info().rss / MIB)
                        break
        return found


def _works(process: psutil.Process) -> bool:
    """Whether it is a job's: not a service of Ray's, nor a worker that Ray keeps ready."""
    with suppress(psutil.NoSuchProcess):
        line = " ".join(process.cmdline())
        spare = "IDLE" in line or "Agent" in line
        return "-m pipelines." in line or (line.startswith("ray::") and not spare)
    return False


HEADER = (
    "| job | seconds | submitted | disturbed by | rows lost | rows twice | steps without metrics "
    "| steps of other samples | processes left | Ray's services, MiB |\n" + "|---" * 10 + "|"
)


def line(one: Round, undisturbed: Round) -> str:
    kinds = ", ".join(f"{name} {times}" for name, times in sorted(one.disturbed.items()))
    return (
        f"| {one.number} | {one.seconds:,.0f} | {one.submitted} | {kinds} "
        f"| {lost(one, undisturbed)} | {len(one.keys) - len(set(one.keys))} "
        f"| {missing(one.losses, undisturbed)} "
        f"| {others(one, undisturbed)} | {left(one, undisturbed).total()} "
        f"| {one.services_mib.total():,} |"
    )


def missing(losses: dict[int, list[float]], undisturbed: Round) -> int:
    """Steps without metrics."""
    return len(undisturbed.losses.keys() - losses.keys())


def lost(one: Round, undisturbed: Round) -> int:
    """Rows that are neither kept nor rejected, or were kept by the undisturbed job alone."""
    return one.input_rows - one.counted_rows + len(set(undisturbed.keys) - set(one.keys))


def left(one: Round, undisturbed: Round) -> Counter[str]:
    """Processes that the undisturbed job did not leave: Ray Data keeps some actors of its own."""
    return one.processes - undisturbed.processes


def others(one: Round, undisturbed: Round) -> int:
    """Steps whose loss is another one: they were made of other samples, or at another state."""
    expected = {step: values[0] for step, values in undisturbed.losses.items()}
    return sum(
        any(abs(value / expected[step] - 1) > SAME_LOSS for value in values)
        for step, values in one.losses.items()
        if step in expected
    )


def report(rounds: list[Round], in_the_end: list[dict[int, list[float]]], minutes: float) -> None:
    undisturbed, rest = rounds[0], rounds[1:]
    late = sum(missing(one.losses, undisturbed) for one in rest)
    never = sum(missing(losses, undisturbed) for losses in in_the_end)
    kinds: Counter[str] = sum((one.disturbed for one in rest), Counter())
    rows = sum(one.input_rows for one in rest)
    samples = sum(len(one.losses) for one in rest)
    print(
        f"\nIn {minutes:g} minutes {len(rest)} jobs, submitted {sum(o.submitted for o in rest)} "
        f"times, were disturbed {sum(kinds.values())} times "
        f"({', '.join(f'{name} {times}' for name, times in sorted(kinds.items()))}). Of {rows:,} "
        f"rows {sum(lost(one, undisturbed) for one in rest)} were lost; of {samples:,} steps "
        f"{sum(others(one, undisturbed) for one in rest)} saw other samples than the undisturbed "
        f"job's, {late} had no metrics when their job ended, {never} have none in the end; "
        f"{left(rest[-1], undisturbed).total()} processes were left in the end. "
        f"Undisturbed, a job takes {undisturbed.seconds:,.0f} s. Ray's services on the head, MiB, "
        f"after the first job and after the last: {dict(undisturbed.services_mib)}, "
        f"{dict(rest[-1].services_mib)}."
    )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    main()
