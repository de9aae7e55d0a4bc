"""Runs one Python program as a job and passes its log on, until it ends: as `ray job submit` does,
with no word of its own. A local cluster starts it, with the cluster's address in the environment.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipelines.config import command
from pipelines.submit.jobs import Jobs, new_id
from pipelines.submit.local_cluster import REPOSITORY


def run(arguments: Sequence[str]) -> int:
    """Run `python ARGUMENTS` on the cluster that RAY_ADDRESS names; returns its exit code."""
    jobs, job = Jobs(), new_id()
    here = {"env_vars": {"PYTHONPATH": str(REPOSITORY)}}
    jobs.start([sys.executable, *arguments], here, {}, job)
    return jobs.follow(job, _write)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(command(lambda: run(sys.argv[1:])))
