"""SLURM itself on this machine, for tests: munge, slurmctld and slurmd as processes of the test."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from pathlib import Path

from pipelines.submit.local_cluster import Processes

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
INSTALLED = os.geteuid() == 0 and all(shutil.which(name) for name in PROGRAMS)

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=5
SchedulerParameters=sched_interval=5,batch_sched_delay=0
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=8000 State=UNKNOWN
PartitionName=short Nodes=ALL Default=YES MaxTime=60 DefaultTime=30 State=UP
"""


class Slurm:
    """One node with one partition, `short`; ended by pid."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes = Processes(folder / "pids.json")
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        for name in ("state", "spool"):
            (self._folder / name).mkdir()
        ports = []
        for _ in range(2):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                ports.append(probe.getsockname()[1])
        host = socket.gethostname().split(".")[0]
        (self._folder / "slurm.conf").write_text(
            CONFIG.format(
                folder=self._folder, host=host, controller=ports[0], node=ports[1],
            )
        )  # fmt: skip
        key = self._folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        munge = [
            "munged", "--foreground", "--force", f"--key-file={key}", "--num-threads=2",
            *(f"--{name}={self._folder}/munge.{end}" for name, end in (
                ("socket", "socket"), ("pid-file", "pid"), ("log-file", "log"),
                ("seed-file", "seed"))),
        ]  # fmt: skip
        for name, command in {
            "munged": munge,
            "slurmctld": ["slurmctld", "-D", "-i"],
            "slurmd": ["slurmd", "-D"],
        }.items():
            log = self._folder / f"{name}.txt"
            self._processes.start(name, command, log, self.environment)
            if name == "munged":
                self._wait(lambda: (self._folder / "munge.socket").exists(), log)
        self._wait(lambda: "idle" in self("sinfo", "--noheader", "--format=%t"), log)

    def stop(self) -> None:
        if "slurmctld" in self._processes.names():
            jobs = self("squeue", "--noheader", "--format=%i").split()
            if jobs:
                self("scancel", "--signal=KILL", "--full", *jobs)
                self("scancel", *jobs)
                self._wait(lambda: not self("squeue", "--noheader"), self._folder / "slurmd.txt")
        for name in ("slurmd", "slurmctld", "munged"):
            self._processes.stop(name)

    def __call__(self, *command: str) -> str:
        """What one of SLURM's commands prints."""
        run = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60
        )
        return run.stdout + run.stderr

    def _wait(self, ready, log: Path) -> None:
        deadline = time.monotonic() + 60
        while not ready():
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.5)
