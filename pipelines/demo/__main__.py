"""The demo: sample, local cluster, then data -> train -> evaluate as a Ray job, and where to look.
Run by `make demo` and `make clean`; a second run reuses whatever is finished."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
import urllib.request
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from caft.config import RECIPES
from caft.errors import CAFTError, ClusterError
from caft.overrides import argument
from pipelines.config import TrackingConfig
from pipelines.demo.sample import LISTS, REGIONS, write_sample
from pipelines.runs import experiment_page
from pipelines.submit.chain import Step, chain_arguments
from pipelines.submit.local_cluster import (
    LOOPBACK,
    LocalCluster,
    Ports,
    Processes,
    require_free,
)

LOGICAL_CPUS = 4  # two trainers and two decoders share whatever cores there are
MLFLOW_UP_WITHIN_S = 60.0


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM):  # either way, what was started is stopped
        signal.signal(number, signal.default_int_handler)
    root = args.root.resolve()
    processes = Processes(root / "pids.json")
    try:
        if args.command == "up":
            up(args, root, processes)
        else:
            clean(root, processes)
    except CAFTError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print("demo: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def up(args: argparse.Namespace, root: Path, processes: Processes) -> None:
    """Run the three stages and print where to look.

    Raises:
        ClusterError: a port is in use, or a stage failed.
    """
    ports = Ports(*args.ray_ports)
    cluster = LocalCluster(root, processes, ports, LOGICAL_CPUS)
    base_url = f"http://{LOOPBACK}:{args.sample_port}"
    if not processes.alive("sample"):
        require_free(args.sample_port, "the sample server", "--sample-port")
    if not processes.alive("mlflow"):
        require_free(args.mlflow_port, "the MLflow page", "--mlflow-port")
    sample = root / "sample"
    started = time.monotonic()
    made_of = {"base_url": base_url, "scenes": args.scenes, "test_scenes": args.test_scenes}
    stages = _stages(root, args)
    identity = {"sample": made_of, "stages": stages, "recipes": _recipes(stages)}
    finished = root / "finished.json"
    if _is_in(finished, identity) and (root / "evaluate" / "report.html").exists():
        _start_mlflow(args.mlflow_port, root, processes, cluster)
        _wait_for_mlflow(args.mlflow_port, root)
        print("demo: finished before; `make clean` removes it")
        _say_where_to_look(root, args.mlflow_port)
        return
    if not _is_in(sample / "done.json", made_of):
        print(f"demo: writing {args.scenes:,} scenes and the photographs to {sample}", flush=True)
        write_sample(sample, base_url, args.scenes, args.test_scenes)
        (sample / "done.json").write_text(json.dumps(made_of))
    try:
        if not processes.alive("sample"):
            server = ["-m", "pipelines.demo.server", str(sample), "--port", str(args.sample_port)]
            processes.start(
                "sample", [sys.executable, *server], root / "sample.log", cluster.environment
            )
        _start_mlflow(args.mlflow_port, root, processes, cluster)
        cluster.start()
        _wait_for_mlflow(args.mlflow_port, root)
        # One job for all: each job costs what it takes to submit, start and follow it.
        print("demo: python -m pipelines.submit.chain data ..., as a job of Ray", flush=True)
        steps = [Step(stage, _recipe(stage), tuple(given)) for stage, given in stages.items()]
        code = cluster.submit(["-m", *chain_arguments(steps)])
        if code != 0:
            raise ClusterError(f"the job ended with code {code}; its log is above")
    finally:
        cluster.stop()
        processes.stop("sample")
    finished.write_text(json.dumps(identity))
    print(f"\ndemo: finished in {time.monotonic() - started:.0f} s")
    _say_where_to_look(root, args.mlflow_port)


def clean(root: Path, processes: Processes) -> None:
    """End every process the demo started, and remove what it wrote."""
    for name in processes.names():
        if name == "ray":
            LocalCluster(root, processes, Ports(), LOGICAL_CPUS).stop()
        else:
            processes.stop(name)
    shutil.rmtree(root, ignore_errors=True)
    print(f"demo: stopped, and removed {root}")


def _is_in(file: Path, identity: dict[str, Any]) -> bool:
    return file.exists() and json.loads(file.read_text()) == identity


def _recipe(stage: str) -> str:
    return str(RECIPES / stage / "demo.yaml")


def _recipes(stages: Iterable[str]) -> dict[str, str]:
    return {stage: Path(_recipe(stage)).read_text(encoding="utf-8") for stage in stages}


def _stages(root: Path, args: argparse.Namespace) -> dict[str, list[str]]:
    """Each stage's overrides: the paths of this demo."""
    sample, regions = root / "sample", root / "sample" / REGIONS
    tracking = _tracking(root).as_arguments()
    tracking.append(argument("tracking.page", f"http://{LOOPBACK}:{args.mlflow_port}"))
    data, train = root / "data", root / "train"
    return {
        "data": [
            *tracking,
            argument("output", str(data)),
            *(
                argument(f"sources.{n}.path", f"{sample / name}.csv")
                for n, name in enumerate(LISTS)
            ),
        ],
        "train": [
            *tracking,
            argument("dataset", str(data)),
            argument("output", str(train)),
            *args.train,
        ],
        "evaluate": [
            *tracking,
            argument("checkpoint", str(train / "final")),
            argument("output", str(root / "evaluate")),
            *(argument(f"benchmarks.{n}.dataset", str(data)) for n in range(2)),
            *(argument(f"benchmarks.{n}.regions", str(regions)) for n in range(2)),
        ],
    }


def _tracking(root: Path) -> TrackingConfig:
    return TrackingConfig(
        uri=f"sqlite:///{root / 'mlflow.db'}",
        experiment="caft-demo",
    )


def _start_mlflow(port: int, root: Path, processes: Processes, cluster: LocalCluster) -> None:
    if not processes.alive("mlflow"):
        environment = {k: v for k, v in cluster.environment.items() if not k.startswith("RAY_")}
        environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # a page to look at, no more
        processes.start("mlflow", _mlflow_command(port, root), root / "mlflow.log", environment)


def _wait_for_mlflow(port: int, root: Path) -> None:
    """Until the page answers: it makes the database's tables, which a stage would else make too."""
    page, deadline = f"http://{LOOPBACK}:{port}", time.monotonic() + MLFLOW_UP_WITHIN_S
    while time.monotonic() < deadline:
        with suppress(OSError), urllib.request.urlopen(f"{page}/health", timeout=2):
            print(f"demo: MLflow is at {page}: curves appear while stages run", flush=True)
            return
        time.sleep(0.5)
    raise ClusterError(f"{page}: MLflow does not answer; see {root / 'mlflow.log'}")


def _mlflow_command(port: int, root: Path) -> list[str]:
    program = str(Path(sys.executable).parent / "mlflow")
    return [
        program, "server", "--backend-store-uri", _tracking(root).uri, "--host", LOOPBACK,
        "--port", str(port), "--workers", "1",
    ]  # fmt: skip


def _say_where_to_look(root: Path, mlflow_port: int) -> None:
    page = experiment_page(f"http://{LOOPBACK}:{mlflow_port}", _tracking(root))
    print(f"report:  {root / 'evaluate' / 'report.html'}")
    print(f"MLflow:  {page}  (running; `make clean` stops it)")
    print(f"         start it again: {' '.join(_mlflow_command(mlflow_port, root))}")
    print("what to do next:")
    print("- look at sentences of your own on an image:  .venv/bin/caft demo")
    print("- see what the model can do from Python:      docs/tour.ipynb")
    print("- train on your own images and captions:      README.md, Bring your own images")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines.demo", description=__doc__)
    parser.add_argument("command", choices=["up", "clean"])
    parser.add_argument("--root", type=Path, default=Path("runs/demo"))
    parser.add_argument("--scenes", type=int, default=6000, help="training scenes")
    parser.add_argument("--test-scenes", type=int, default=500)
    parser.add_argument("--sample-port", type=int, default=8931)
    parser.add_argument(
        "--ray-ports", type=int, nargs=4, default=[6385, 8275, 52375, 10001],
        metavar=("GCS", "DASHBOARD", "AGENT", "CLIENT"),
    )  # fmt: skip
    parser.add_argument("--mlflow-port", type=int, default=5050)
    parser.add_argument(
        "--train", nargs="*", default=[], metavar="key=value", help="for the train stage"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
