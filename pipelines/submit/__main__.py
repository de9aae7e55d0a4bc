"""Stages as jobs on any Ray cluster, from a laptop: a thin layer over Ray's own job server.
`python -m pipelines.submit data|train|evaluate|embed|sweep CONFIG [key=value ...] [--then ...]`,
`chain FILE`, or `status|logs|stop JOB` and `list`; each with `--cluster
local|ADDRESS|kuberay:NAME|slurm[:PARTITION]`."""

from __future__ import annotations

import argparse
import getpass
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from caft.errors import ClusterError, ConfigError
from caft.secrets import holds_secret, is_secret_name
from pipelines import git, storage
from pipelines.config import command
from pipelines.recipes import is_recipe
from pipelines.runs import require_lasting
from pipelines.submit import kuberay
from pipelines.submit.chain import (
    STAGES,
    Step,
    chain_arguments,
    connect_steps,
    parse_step,
    read_chain,
)
from pipelines.submit.jobs import LONG_PATIENCE_S, PATIENCE_S, Jobs, new_id, on_local_cluster
from pipelines.submit.package import pack
from pipelines.submit.slurm import SlurmJobs
from pipelines.tracking.about import USER

LOOKS = {"status": 1, "logs": 1, "stop": 1, "list": 0}  # and how many jobs they take
LOCAL, KUBERAY, SLURM = "local", "kuberay:", "slurm"
# What jobs are told of the place they were submitted from. Credentials never travel with a job:
# whoever may look at the dashboard would read them there.
PASSED_ON = ("MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION")
SETTINGS = {
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "PYTHONUNBUFFERED": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
}


def submit(steps: Sequence[Step], args: argparse.Namespace) -> int:
    """Submit checked steps as one job; follow it unless --detach. Returns its exit code.

    Raises:
        ClusterError: the cluster does not answer.
        ConfigError: the working directory is too large, or a variable holds a secret.
    """
    environment = job_environment(args.env)
    jobs = Jobs(LONG_PATIENCE_S)
    with tempfile.TemporaryDirectory() as folder:
        package = pack(Path.cwd(), Path(folder))
        _print_lines(package.described())
        job = new_id()
        jobs.start(
            ["python", "-m", *chain_arguments(steps)],
            {"working_dir": str(package.path), "env_vars": environment},
            {"name": _name(args, steps), "stage": "+".join(step.stage for step in steps)},
            job,
        )
    print(f"submit: job {job}", flush=True)
    return 0 if args.detach else _follow(jobs, job)


def _name(args: argparse.Namespace, steps: Sequence[Step]) -> str:
    return args.name or "-".join(step.stage for step in steps)


def _print_lines(lines: Sequence[str]) -> None:
    print("\n".join(f"submit: {line}" for line in lines), flush=True)


def _on_slurm(steps: Sequence[Step], args: argparse.Namespace, partition: str) -> int:
    """Submit steps to SLURM, or look at its jobs; returns the exit code."""
    jobs = SlurmJobs(Path.cwd())
    if args.command == "list":
        for job, state, name in jobs.all():
            print(f"{job:10}  {state:9}  {name}")
    elif args.command == "status":
        print(jobs.state(args.words[0]))
    elif args.command == "stop":
        jobs.stop(args.words[0])
        print(f"submit: asked {args.words[0]} to end; what it has finished stays")
    elif args.command == "logs" and not args.follow:
        print(jobs.log(args.words[0]), end="")
    elif args.command == "logs":
        return _follow(jobs, args.words[0])
    else:
        runs = Path("runs").resolve()
        os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{runs / 'mlflow.db'}")
        options = [*([f"--partition={partition}"] if partition else []), *args.sbatch]
        job, copied = jobs.submit(steps, _name(args, steps), options, job_environment(args.env))
        _print_lines(copied)
        print(f"submit: job {job}", flush=True)
        return 0 if args.detach else _follow(jobs, job)
    return 0


def job_environment(extra: Sequence[str]) -> dict[str, str]:
    """The variables that a job is given: SETTINGS, PASSED_ON where set, the git revision,
    the user's name, and `extra` NAME=VALUE.

    Raises:
        ConfigError: one that is no NAME=VALUE, or that holds a secret.
    """
    given = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    if revision := git.revision(Path.cwd()) or os.environ.get(git.REVISION):
        given[git.REVISION] = revision
    given[USER] = getpass.getuser()
    for variable in extra:
        name, separator, value = variable.partition("=")
        if not (name and separator):
            raise ConfigError(f"--env {variable}: must be NAME=VALUE")
        given[name] = value
    for name, value in given.items():
        if is_secret_name(name) or holds_secret(value):
            raise ConfigError(
                f"{name}: looks like a secret, which everybody who sees the job could read; set it "
                "on the cluster's nodes instead"
            )
    return SETTINGS | given


def _follow(jobs: Jobs | SlurmJobs, job: str) -> int:
    try:
        code = jobs.follow(job, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        print(
            f"\nsubmit: {job} goes on; `python -m pipelines.submit logs {job} --follow` or `stop "
            f"{job}`",
            file=sys.stderr,
        )
        return 130
    if code != 0:
        print(f"submit: {job} ended with code {code}", file=sys.stderr, flush=True)
    return code


def _look(args: argparse.Namespace) -> int:
    jobs = Jobs(LONG_PATIENCE_S if args.follow else PATIENCE_S)
    if args.command == "list":
        for job in jobs.all():
            began = datetime.fromtimestamp((job.start_time or 0) / 1000)
            name = (job.metadata or {}).get("name", "")
            print(f"{job.submission_id}  {job.status.value:9}  {began:%Y-%m-%d %H:%M}  {name}")
    elif args.command == "status":
        details = jobs.details(args.words[0])
        print(f"{details.status.value}: {' '.join((details.message or '').split())}")
    elif args.command == "stop":
        jobs.stop(args.words[0])
        print(f"submit: asked {args.words[0]} to end; what it has finished stays")
    elif args.follow:
        return _follow(jobs, args.words[0])
    else:
        print(jobs.log(args.words[0]), end="")
    return 0


def _steps(args: argparse.Namespace) -> list[Step]:
    """What is to run, as it will run: checked here, so that what is wrong is said at once."""
    if args.command == "chain":
        first, rest = read_chain(args.words[0]), args.words[1:]
        if rest:
            raise ConfigError(f"{rest[0]}: keys of a chain are set in its file, under `set`")
    else:
        first = [Step(args.command, args.words[0], tuple(args.words[1:]))]
    steps = connect_steps([*first, *(parse_step(text) for text in args.then)])
    here = Path.cwd()
    for step in steps:
        if not is_recipe(step.config) and not Path(step.config).resolve().is_relative_to(here):
            raise ConfigError(f"{step.config}: lies outside of {here}, which is all that jobs see")
        config = step.load()
        output = config.model_dump()["output"]
        if storage.is_local(output) and not output.startswith(("/", "file:")):
            raise ConfigError(
                f"{step.config}: output: '{output}' is relative, and a job runs in a temporary "
                "copy of this folder; set an absolute or s3:// path that the nodes share"
            )
        # Without either of the two the nodes' own environment says where runs go.
        if "uri" in config.tracking.model_fields_set or "MLFLOW_TRACKING_URI" in os.environ:
            require_lasting(config.tracking, in_job=True)
    return [
        step
        if is_recipe(step.config)
        else replace(step, config=str(Path(step.config).resolve().relative_to(here)))
        for step in steps
    ]


def main(argv: list[str]) -> int:
    """Do what a command line asks for; returns the exit code, 2 after one line of error."""
    return command(lambda: _run(argv))


def _run(argv: list[str]) -> int:
    args = parse(argv)
    steps = [] if args.command in LOOKS else _steps(args)
    cluster = args.cluster or os.environ.get("RAY_ADDRESS")
    if not cluster:
        raise ClusterError(
            "--cluster: say local, an address as http://HEAD:8265, kuberay:NAME, or slurm:PARTITION"
        )
    kind, _, partition = cluster.partition(":")
    if args.sbatch and kind != SLURM:
        raise ClusterError(f"--sbatch {args.sbatch[0]}: is for --cluster slurm")
    if kind == SLURM:
        return _on_slurm(steps, args, partition)
    if cluster == LOCAL:
        if args.detach or args.command in LOOKS:
            raise ClusterError(
                "--cluster local: this cluster ends with its command; leave --detach out, or "
                "start a cluster and give its address"
            )
        runs = Path("runs").resolve()
        os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{runs / 'mlflow.db'}")
        return on_local_cluster(_again(argv), runs / "cluster")
    if cluster.startswith(KUBERAY):
        with kuberay.reached(cluster.removeprefix(KUBERAY)) as environment:
            return subprocess.run([sys.executable, *_again(argv)], env=environment).returncode
    os.environ["RAY_ADDRESS"] = cluster  # Ray heeds this variable above all
    return _look(args) if args.command in LOOKS else submit(steps, args)


def _again(argv: Sequence[str]) -> list[str]:
    """This command for the cluster that RAY_ADDRESS then names, after `python`. In a process of its
    own, because Ray reads how to sign in only once."""
    words, rest = [], iter(argv)
    for word in rest:
        if word == "--cluster":
            next(rest)
        elif not word.startswith("--cluster="):
            words.append(word)
    return ["-m", "pipelines.submit", *words]


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """This module's command line; leaves with a usage message when it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.submit", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("command", choices=[*STAGES, "chain", *LOOKS])
    parser.add_argument("words", nargs="*", metavar="CONFIG [key=value ...] | FILE | JOB")
    parser.add_argument(
        "--cluster",
        help="local, an address, kuberay:NAME, or slurm:PARTITION; else RAY_ADDRESS",
    )
    parser.add_argument("--then", action="append", default=[], metavar="STAGE:CONFIG[,key=value]")
    parser.add_argument("--detach", action="store_true", help="return once the job is submitted")
    parser.add_argument("--follow", action="store_true", help="of logs: until the job ends")
    parser.add_argument("--name", help="what lists call the job; else its stages")
    parser.add_argument(
        "--sbatch", action="append", default=[], metavar="=--OPTION=VALUE", help="of SLURM's sbatch"
    )
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    args = parser.parse_intermixed_args(argv)
    wanted = LOOKS.get(args.command)
    if wanted is None and not args.words:
        parser.error(f"{args.command}: give a configuration file")
    if wanted is not None and len(args.words) != wanted:
        parser.error(f"{args.command}: give " + ("the id of one job" if wanted else "nothing more"))
    return args


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
