"""Ingest from an S3 server that answers every request 50 ms late, beside the same files here.

One worker's batches of `caft_b`, epoch by epoch: from the local disk, from the server, and from the
server with `ingest.cache`. Prints images a second and requests for a thousand images.

    python benchmarks/ingest_latency.py [--images 2048 --epochs 3 --delay-ms 50]
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
from ingest import BATCH, LANES, MODEL, WINDOW_STEPS, start_ray
from ingest_files import write_samples
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from caft.config import load_model_config
from pipelines.data.dataset import open_dataset
from pipelines.train.config import CacheConfig, IngestConfig
from pipelines.train.ingest import index_row_groups, iter_batches
from pipelines.train.loader import Loader
from pipelines.train.plan import EpochPlan

BUCKET = "caft-latency"
TARGET = 0.95  # of the local rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2048, help="a multiple of 256")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--delay-ms", type=float, default=50.0)
    parser.add_argument("--folder", type=Path, help="samples are kept here for another run")
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="caft-latency-") as temporary:
        folder = args.folder or Path(temporary)
        write_samples(folder, args.images)
        server = Late(args.delay_ms / 1000)
        server.start()
        upload(folder / "dataset")
        start_ray(cores)
        cache = CacheConfig(folder=str(Path(temporary) / "cache"), max_gb=10)
        sides = {
            "local disk": epochs(str(folder / "dataset"), None, cores),
            "server": epochs(f"s3://{BUCKET}/dataset", None, cores),
            "server, cache": epochs(f"s3://{BUCKET}/dataset", cache, cores),
        }
        rows: dict[str, list[tuple[float, int]]] = {name: [] for name in sides}
        for _ in range(args.epochs + 1):  # the first fills the cache, and warms the others
            for name, side in sides.items():
                before, started = server.count, time.perf_counter()
                images = sum(len(batch) for batch in next(side))
                rows[name].append((images / (time.perf_counter() - started), server.count - before))
    report(rows, args, cores)


class Late:
    """A real S3 server on loopback; every answer waits."""

    def __init__(self, delay_s: float) -> None:
        self._app, self._delay_s = DomainDispatcherApplication(create_backend_app), 0.0
        self._due_s = delay_s
        self._lock = threading.Lock()
        self.count = 0

    def start(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        server = make_server("127.0.0.1", 0, self, threaded=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        os.environ.update(
            AWS_ENDPOINT_URL=f"http://127.0.0.1:{server.server_port}",
            AWS_ACCESS_KEY_ID="none",
            AWS_SECRET_ACCESS_KEY="none",
            AWS_DEFAULT_REGION="us-east-1",
        )
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        self._delay_s = self._due_s

    def __call__(self, environ: Any, start_response: Any) -> Any:
        with self._lock:
            self.count += 1
        time.sleep(self._delay_s)
        return self._app(environ, start_response)


def upload(dataset: Path) -> None:
    client = boto3.client("s3")
    for file in dataset.iterdir():
        client.upload_file(str(file), BUCKET, f"dataset/{file.name}")


def epochs(path: str, cache: CacheConfig | None, cores: int) -> Iterator[Iterator[Any]]:
    """The images of one epoch after the other, batch by batch."""
    dataset = open_dataset(path)
    groups = index_row_groups(dataset, "train")
    settings = IngestConfig(
        lanes=LANES, window_steps=WINDOW_STEPS, loaders_per_worker=cores, cache=cache
    )
    model = load_model_config(MODEL)
    loader = Loader(path, "train", model, settings, fingerprint=dataset.fingerprint)
    plan = EpochPlan(groups, BATCH, LANES, WINDOW_STEPS, seed=0)
    step = 0
    while True:
        batches = iter_batches(plan, loader, 0, 1, step, step + plan.steps_per_epoch)
        yield (batch.images for batch in batches)
        step += plan.steps_per_epoch


def report(rows: dict[str, list[tuple[float, int]]], args: argparse.Namespace, cores: int) -> None:
    print(
        f"{args.images:,} images of up to 512 px, {cores} cores, each answer {args.delay_ms:g} ms "
        f"late; median of {args.epochs} epochs after a first one, taking turns\n"
    )
    print(
        "| from | images/s | of the local rate | requests for 1,000 images: first epoch | later |"
    )
    print("|---|---|---|---|---|")
    local = statistics.median(rate for rate, _ in rows["local disk"][1:])
    for name, measured in rows.items():
        rate = statistics.median(rate for rate, _ in measured[1:])
        later = statistics.median(count for _, count in measured[1:])
        print(
            f"| {name} | {rate:,.0f} | {rate / local:.0%} | "
            f"{1000 * measured[0][1] / args.images:,.1f} | {1000 * later / args.images:,.1f} |"
        )
    print(f"\ntarget: {TARGET:.0%}, and no request in a later epoch with the cache")


if __name__ == "__main__":
    main()
