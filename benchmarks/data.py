"""How fast the data stage downloads, resizes and writes, beside img2dataset on the same images.

Both sides fetch the same list from the same loopback server with the same settings, taking turns on
the same cores: longest side 512 px, smaller images kept as they came, Parquet. A short and a long
list are timed; the difference is the steady rate, without what a start costs.

    python benchmarks/data.py                 # the tables of docs/data_costs.md, about 15 minutes
    python benchmarks/data.py --short         # fewer images, one round: at most five minutes
    python benchmarks/data.py --memory        # memory over the length of the list
    python benchmarks/data.py --short --before ../other-checkout    # against another version
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import psutil
import pyarrow.parquet as pq
import ray
from image_server import image_server

from caft.config import validate
from pipelines.data.config import DataConfig
from pipelines.data.sources import DREAMLIP_CAPTION_COLUMNS
from pipelines.data.stage import run

CAPTIONS = Path(__file__).parent / "data" / "iiw_docci_test.jsonl"
MAX_SIDE_PX = 512
CONNECTIONS = 64
CORES = os.cpu_count() or 1


def write_list(path: Path, base_url: str, images: int, rows: int) -> None:
    """A list in DreamLIP's columns; each image occurs as often as needed, under its own URL."""
    texts = [
        " ".join(json.loads(line)["caption"].split())  # img2dataset reads no line breaks in cells
        for line in CAPTIONS.read_text().splitlines()
    ]
    with open(path, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["Image Path", *DREAMLIP_CAPTION_COLUMNS])
        for n in range(rows):
            long = texts[n % len(texts)]
            short = long.split(". ")[0] + "."
            captions = [short, short, long, short, long, short, long]
            writer.writerow([f"{base_url}/{n % images}?{n}", *captions])


def with_img2dataset(listing: Path, output: Path) -> int:
    """Run img2dataset in a process of its own; images it stored."""
    process = multiprocessing.get_context("spawn").Process(
        target=_img2dataset, args=(str(listing), str(output))
    )
    process.start()
    process.join()
    parts = output.glob("*.parquet")
    return sum(
        pq.read_table(p, columns=["status"])["status"].to_pylist().count("success") for p in parts
    )


def _img2dataset(listing: str, output: str) -> None:
    from img2dataset import download

    download(
        url_list=listing,
        input_format="csv",
        url_col="Image Path",
        caption_col="longSV_captions",
        output_folder=output,
        output_format="parquet",
        image_size=MAX_SIDE_PX,
        resize_mode="keep_ratio_largest",
        resize_only_if_bigger=True,
        skip_reencode=True,
        encode_quality=92,
        processes_count=CORES,
        thread_count=CONNECTIONS,
        number_sample_per_shard=500,
        timeout=10,
        retries=0,
        compute_hash=None,
        distributor="multiprocessing",
        disallowed_header_directives=["noai", "noimageai", "noindex", "noimageindex"],
    )


def with_ours(listing: Path, output: Path, everything: bool) -> int:
    """Run the data stage on the running cluster; images it stored."""
    source = {"caption_columns": {"longSV_captions": "long"}}  # as img2dataset does
    filters = {"min_contrast": None, "min_side_px": 1}
    duplicates = {"same_bytes": False, "near_distance": None}
    if everything:
        source = {}
        filters = {
            "max_aspect_ratio": 4,
            "min_caption_chars": 5,
            "min_sentences": 1,
            "max_repeated_share": 0.5,
            "refuse_patterns": ["^(click|image) (here|not available)", "lorem ipsum"],
        }
        duplicates = {"same_bytes": True, "near_distance": 2}
    config = {
        "sources": [{"name": "images", "path": str(listing), **source}],
        "output": str(output),
        "chunk_rows": 500,
        "progress_every_s": 3600,
        "download": {
            "connections": CONNECTIONS,
            "connections_per_host": CONNECTIONS,
            "retries": 0,
            "allow_private_hosts": ["127.0.0.1"],
        },
        "image": {"max_side_px": MAX_SIDE_PX},
        "filters": filters,
        "duplicates": duplicates,
        "tracking": {"uri": f"sqlite:///{output.parent}/mlflow.db"},
    }
    run(validate(DataConfig, config, source="benchmark"))
    counts = json.loads((output / "manifest.json").read_text())["counts"]
    duplicates_found = sum(n for why, n in counts["rejected"].items() if "duplicate" in why)
    return int(counts["kept"]) + duplicates_found  # stored for a while: downloaded and encoded


SIDES: dict[str, Callable[[Path, Path], int]] = {
    "img2dataset": with_img2dataset,
    "ours, download + resize + Parquet": lambda a, b: with_ours(a, b, False),
    "ours, with seven captions, all filters and duplicates": lambda a, b: with_ours(a, b, True),
}


def compare(folder: Path, base_url: str, images: int, rounds: int) -> None:
    lengths = {"short": images, "long": 4 * images}
    lists = {name: folder / f"{name}.csv" for name in lengths}
    for name, rows in lengths.items():
        write_list(lists[name], base_url, images, rows)
    with_ours(lists["short"], folder / "warm", True)  # workers start and MLflow makes its tables
    seconds: dict[tuple[str, str], list[float]] = {}
    stored: dict[tuple[str, str], int] = {}
    for _ in range(rounds):
        for length in lengths:
            for side, call in SIDES.items():
                output = folder / "output"
                shutil.rmtree(output, ignore_errors=True)
                started = time.perf_counter()
                stored[side, length] = call(lists[length], output)
                seconds.setdefault((side, length), []).append(time.perf_counter() - started)
    print(
        f"\n{images:,} images of 320 to 1,600 px, 6% of them broken; {CORES} cores, which the "
        f"server shares; median of {rounds}, taking turns\n"
    )
    print("| | images stored | s, short list | s, long list | images/s per core, steady | times |")
    print("|---|---|---|---|---|---|")
    rates = {}
    for side in SIDES:
        short, long = (statistics.median(seconds[side, length]) for length in lengths)
        new = stored[side, "long"] - stored[side, "short"]
        rates[side] = new / (long - short) / CORES
        print(
            f"| {side} | {stored[side, 'long']:,} | {short:.1f} | {long:.1f} | {rates[side]:,.0f} "
            f"| {rates[side] / rates['img2dataset']:.2f} |"
        )


# One version's stage in one process, its tasks one after another: processor time is then all its
# own, on a busy machine too.
VERSION = """
import json, sys
from pathlib import Path
import psutil
from pipelines import workers

def in_turn(label, function, items, *_, **__):
    for item in items:
        yield item, json.loads(json.dumps(function(item)))

def cpu_s():
    me = psutil.Process()
    return sum(sum(p.cpu_times()[:4]) for p in [me, *me.children(recursive=True)])

workers.run_tasks, workers.cluster_cpus = in_turn, lambda: 1
from data import with_ours
short, long, output = map(Path, sys.argv[1:])
with_ours(short, output / "warm", True)
marks = [cpu_s()]
stored = []
for name, listing in (("short", short), ("long", long)):
    stored.append(with_ours(listing, output / name, True))
    marks.append(cpu_s())
print(json.dumps([stored[1] - stored[0], (marks[2] - marks[1]) - (marks[1] - marks[0])]))
"""


def against(folder: Path, base_url: str, images: int, rounds: int, before: Path) -> None:
    """The stage with everything on, of this checkout and of another, taking turns."""
    checkouts = {"before": before.resolve(), "after": Path(__file__).parents[1]}
    lists = {"short": folder / "short.csv", "long": folder / "long.csv"}
    write_list(lists["short"], base_url, images, images)
    write_list(lists["long"], base_url, images, 4 * images)
    found: dict[str, list[tuple[int, float]]] = {name: [] for name in checkouts}
    for n in range(rounds):
        for name, checkout in list(checkouts.items())[:: 1 - 2 * (n % 2)]:
            output = folder / f"{name}-{n}"
            paths = os.pathsep.join([str(checkout), str(checkout / "benchmarks")])
            command = [sys.executable, "-c", VERSION, *map(str, lists.values()), str(output)]
            environment = os.environ | {"PYTHONPATH": paths}
            done = subprocess.run(
                command, cwd=checkout, env=environment, stdout=subprocess.PIPE, check=True
            )
            found[name].append(tuple(json.loads(done.stdout.splitlines()[-1])))
            print(name, *found[name][-1], flush=True)
            shutil.rmtree(output)
    print(f"\n{3 * images:,} rows, one core, steady; median of {rounds}, taking turns\n")
    print("| | images stored | CPU ms a row | times |\n|---|---|---|---|")
    first = statistics.median(cpu for _, cpu in found["before"])
    for name, runs in found.items():
        cpu = statistics.median(cpu for _, cpu in runs)
        cost = 1000 * cpu / (3 * images)
        print(f"| {name} | {runs[0][0]:,} | {cost:.2f} | {first / cpu:.2f} |")


def memory(folder: Path, base_url: str) -> None:
    """Peak memory of the driver and of the largest worker over lists that answer 404."""
    print("\n| rows | driver, peak MiB | largest worker, peak MiB | rows/s |\n|---|---|---|---|")
    for rows in (10_000, 1_000_000):
        listing = folder / f"{rows}.csv"
        with open(listing, "w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["url", "caption"])
            writer.writerow([f"{base_url}/50", "The one that is there."])
            writer.writerows(
                [f"{base_url}/none/{n}", f"Picture {n} that nobody finds."] for n in range(rows - 1)
            )
        script = (
            "import sys; from caft.config import load_config; from pipelines.data.stage import run;"
            "from pipelines.data.config import DataConfig;"
            "run(load_config(DataConfig, None, sys.argv[1:]))"
        )
        overrides = [
            f"sources=[{{name: list, path: {listing}}}]",
            f"output={folder}/{rows}",
            "download.allow_private_hosts=[127.0.0.1]",
            "download.retries=0",
            "filters.min_contrast=null",
            f"tracking.uri=sqlite:///{folder}/mlflow.db",
            "progress_every_s=60",
        ]
        started = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-c", script, *overrides])
        peaks = watch(process)
        elapsed = time.perf_counter() - started
        driver = peaks.pop(process.pid)
        print(
            f"| {rows:,} | {driver / 2**20:,.0f} | {max(peaks.values()) / 2**20:,.0f} "
            f"| {rows / elapsed:,.0f} |"
        )


def watch(process: subprocess.Popen[bytes]) -> dict[int, int]:
    """Highest resident bytes of a process and of the Ray workers below it, until it ends."""
    peaks: dict[int, int] = {process.pid: 0}
    while process.poll() is None:
        try:
            family = psutil.Process(process.pid).children(recursive=True)
        except psutil.Error:
            break
        for member in [psutil.Process(process.pid), *family]:
            try:
                if member.pid == process.pid or member.name().startswith("ray::"):
                    resident = member.memory_info().rss - member.memory_info().shared
                    peaks[member.pid] = max(peaks.get(member.pid, 0), resident)
            except psutil.Error:
                continue
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"the stage ended with {process.returncode}")
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port", type=int, default=8950)
    parser.add_argument("--short", action="store_true", help="as --images 800 --rounds 1")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--before", type=Path, help="a checkout of another version")
    args = parser.parse_args()
    if args.short:
        args.images, args.rounds = 800, 1
    folder = Path(tempfile.mkdtemp(prefix="caft-benchmark-"))
    try:
        with image_server(100 if args.memory else args.images, args.port) as base_url:
            if args.memory:
                memory(folder, base_url)
            elif args.before:
                against(folder, base_url, args.images, args.rounds, args.before)
            else:
                ray.init(num_cpus=CORES, include_dashboard=False, log_to_driver=False)
                compare(folder, base_url, args.images, args.rounds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
