"""The demo: sample, local cluster, then data -> train -> evaluate as Ray jobs, and where to look.
Run by `make demo` and `make clean`; a second run reuses whatever is finished."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

from caft.config import RECIPES
from caft.errors import CAFTError, ClusterError
from caft.overrides import argument
from pipelines.config import TrackingConfig
from pipelines.demo.sample import LISTS, REGIONS, write_sample
from pipelines.runs import experiment_page
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
    done = sample / "done.json"
    if not done.exists() or json.loads(done.read_text()) != made_of:
        print(f"demo: writing {args.scenes:,} scenes and the photographs to {sample}", flush=True)
        write_sample(sample, base_url, args.scenes, args.test_scenes)
        done.write_text(json.dumps(made_of))
    times = {"sample": time.monotonic() - started}
    try:
        if not processes.alive("sample"):
            server = ["-m", "pipelines.demo.server", str(sample), "--port", str(args.sample_port)]
            processes.start(
                "sample", [sys.executable, *server], root / "sample.log", cluster.environment
            )
        started = time.monotonic()
        _start_mlflow(args.mlflow_port, root, processes, cluster)
        cluster.start()
        _wait_for_mlflow(args.mlflow_port, root)
        times["cluster and MLflow"] = time.monotonic() - started
        for stage, overrides in _stages(root, args).items():
            print(f"\ndemo: ray job submit -- python -m pipelines.{stage}", flush=True)
            started = time.monotonic()
            config = str(RECIPES / stage / "demo.yaml")
            code = cluster.submit(["-m", f"pipelines.{stage}", config, *overrides])
            if code != 0:
                raise ClusterError(f"the {stage} job ended with code {code}; its log is above")
            times[stage] = time.monotonic() - started
    finally:
        cluster.stop()
        processes.stop("sample")
    _say_where_to_look(root, args.mlflow_port, times)


def clean(root: Path, processes: Processes) -> None:
    """End every process the demo started, and remove what it wrote."""
    for name in processes.names():
        if name == "ray":
            LocalCluster(root, processes, Ports(), LOGICAL_CPUS).stop()
        else:
            processes.stop(name)
    shutil.rmtree(root, ignore_errors=True)
    print(f"demo: stopped, and removed {root}")


def _stages(root: Path, args: argparse.Namespace) -> dict[str, list[str]]:
    """Each stage's overrides: the paths of this demo."""
    sample, regions = root / "sample", root / "sample" / REGIONS
    tracking = _tracking(root).as_arguments()
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


def _say_where_to_look(root: Path, mlflow_port: int, times: dict[str, float]) -> None:
    spent = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in times.items())
    print(f"\ndemo: finished ({spent}; {sum(times.values()):.0f} s in all)")
    print(f"report:  {root / 'evaluate' / 'report.html'}")
    page = experiment_page(f"http://{LOOPBACK}:{mlflow_port}", _tracking(root))
    print(f"MLflow:  {page}  (running; `make clean` stops it)")
    print(f"         start it again: {' '.join(_mlflow_command(mlflow_port, root))}")
    print("next:    name your own list of images and captions: README.md, Bring your own images")


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
