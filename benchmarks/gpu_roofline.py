"""Predicts a training step on an H100 from a step counted without one. No GPU has confirmed it.

A kernel takes the longest of its bytes, its FLOP and a smallest time, at the rates below; what the
host makes the device wait for is added. The last line is `predicted step: N ms`.

    python benchmarks/gpu_roofline.py [--images 256] [--workers 8] [key=value ...]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEP = Path(__file__).parent / "gpu_free" / "step.py"
PREDICTED = Path(__file__).parent / "data" / "gpu_predicted.json"
GIGA, TERA, MS = 1e9, 1e12, 1e3

# An H100 SXM. Assumed, from data sheets and what good kernels are known to reach of them.
BYTES_PER_S = 0.8 * 3.35 * TERA
SHORTEST_S = 2.5e-6  # of a kernel
PEAK = 989 * TERA  # of bfloat16 products; what MFU is a share of
PRODUCTS = {
    "bfloat16": 620 * TERA,
    "float16": 620 * TERA,
    "float32": 45 * TERA,
    "float64": 45 * TERA,
}
CONVOLUTIONS = {"bfloat16": 350 * TERA, "float16": 350 * TERA, "float32": 200 * TERA}  # TF32
FLASH, MASKED = 250 * TERA, 120 * TERA  # attention without and with a mask
SCATTERS, SORTED = ("index_put", "index_put_", "_index_put_impl_"), 4  # times the bytes: a sort
LINK_BYTES_PER_S = 0.8 * 450 * GIGA  # NVLink, one way
# The host beside it.
LAUNCH_S = 6e-6  # of an operation that is not compiled
PAGEABLE_BYTES_PER_S = 4 * GIGA  # to the device, by way of the driver's buffer
PREPARE_S = 36e-6  # an image: 20 to collate it, 10 to pack its texts, 6 to draw negatives


@dataclass
class Part:
    ops: int = 0
    kernels: int = 0
    bytes: int = 0
    flop: int = 0
    seconds: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256, help="of each worker")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--maps", choices=["all", "some", "none"], default="none")
    parser.add_argument("--counts", type=Path, help="what gpu_free/step.py wrote; None: run it")
    parser.add_argument("--keep", action="store_true", help=f"write it into {PREDICTED.name}")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()
    counts = json.loads(args.counts.read_text()) if args.counts else counted(args)
    parts = by_phase(counts["counts"])
    network_s, host_s = exposed_network(counts, args.workers), exposed_host(counts, args)
    gpu_s = sum(part.seconds for part in parts.values())
    print_parts(parts)
    step_s = gpu_s + network_s + host_s
    rate = args.images / step_s
    print(
        f"\nOn the device {gpu_s * MS:.1f} ms, waiting for other workers {network_s * MS:.1f} ms, "
        f"for the host {host_s * MS:.1f} ms; {max(counts['peak_bytes'].values()) / GIGA:.1f} GB"
    )
    print(f"{rate:,.0f} images/s, {rate * useful_flop(args.images) / PEAK:.0%} MFU, predicted")
    print(f"predicted step: {step_s * MS:.1f} ms")
    if args.keep:
        kept = {
            "workers": args.workers,
            "images": args.images,
            "step_ms": step_s * MS,
            "peak_gb": max(counts["peak_bytes"].values()) / GIGA,
            "parts_ms": {name: part.seconds * MS for name, part in parts.items()},
            "kinds_ms": by_kind(counts["counts"]) | {"collectives": network_s * MS},
        }
        keep(kept)


def counted(args: argparse.Namespace) -> dict[str, Any]:
    """A step's counts, from a process that believes in a GPU."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, str(STEP), f"--images={args.images}", f"--out={file.name}"]
        command += [f"--workers={args.workers}", f"--maps={args.maps}", *args.overrides]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return json.loads(Path(file.name).read_text())


def by_phase(counts: list[dict[str, Any]]) -> dict[str, Part]:
    parts: dict[str, Part] = defaultdict(Part)
    for count in counts:
        part = parts[count["phase"]]
        part.ops += count["ops"]
        part.kernels += count["kernels"]
        part.bytes += count["bytes"]
        part.flop += count["flop"]
        part.seconds += seconds(count)
    return parts


def by_kind(counts: list[dict[str, Any]]) -> dict[str, float]:
    """Milliseconds by what a kernel is, as gpu_acceptance.py tells them apart."""
    found: dict[str, float] = defaultdict(float)
    for count in counts:
        op = count["op"]
        kind = "all else"
        if "attention" in op or "attn" in op:
            kind = "attention"
        elif op.startswith("convolution"):
            kind = "convolutions"
        elif op in ("mm", "addmm", "bmm", "baddbmm"):
            kind = "products"
        elif count["phase"] == "optimiser":
            kind = "optimiser"
        found[kind] += seconds(count) * MS
    return found


def keep(step: dict[str, Any]) -> None:
    """Beside those of other numbers of workers, which gpu_acceptance.py prints."""
    known = json.loads(PREDICTED.read_text())
    others = [other for other in known["steps"] if other["workers"] != step["workers"]]
    known["steps"] = sorted([*others, step], key=lambda other: other["workers"])
    PREDICTED.write_text(json.dumps(known, indent=1) + "\n")


def seconds(count: dict[str, Any]) -> float:
    """Of all operations of one kind."""
    moving = count["bytes"] / BYTES_PER_S
    if count["op"] in SCATTERS and count["site"] != "compiled":
        moving *= SORTED
    computing = count["flop"] / rate_of(count["op"], count["dtype"])
    return max(moving, computing, count["kernels"] * SHORTEST_S)


def rate_of(op: str, dtype: str) -> float:
    if "efficient_attention" in op:
        return MASKED
    if "attention" in op or "attn" in op:
        return FLASH
    table = CONVOLUTIONS if op.startswith("convolution") else PRODUCTS
    return table.get(dtype, PRODUCTS["bfloat16"])


def exposed_network(counts: dict[str, Any], workers: int) -> float:
    """What collectives take by a ring, and nothing hides. One that is waited for later travels
    while the device moves what is left of backward, one after the other."""
    seconds_per_byte = sum(map(seconds, counts["counts"])) / sum(
        count["bytes"] for count in counts["counts"]
    )
    spent = free = 0.0
    ready = max((e["bytes_before"] for e in counts["events"] if e.get("later")), default=0)
    for event in counts["events"]:
        if event["kind"] != "collective":
            continue
        passes = 2 if "allreduce" in event["detail"] else 1
        took = passes * (workers - 1) / workers * event["bytes"] / LINK_BYTES_PER_S
        if event["later"]:
            free = max(free, event["bytes_before"] * seconds_per_byte) + took
        else:
            spent += took
    return spent + max(0.0, free - ready * seconds_per_byte)


def exposed_host(counts: dict[str, Any], args: argparse.Namespace) -> float:
    """What the device waits for while the host prepares a step: all that the loop's own thread
    does for it once it has waited for the device, and pageable copies; else nothing but launches
    that take longer than what they launch."""
    events = counts["events"]
    own = [e for e in events if e["stream"] == "main"]
    pageable = sum(e["bytes"] for e in own if e["kind"] == "h2d" and not e["pinned"])
    in_loop = any(e["kind"] == "h2d" and e["bytes"] > 2**20 for e in own)
    waits = any(e["kind"] == "sync" or (e["kind"] == "h2d" and e["blocking"]) for e in own)
    launching = LAUNCH_S * sum(c["ops"] for c in counts["counts"] if c["site"] != "compiled")
    launching += SHORTEST_S * sum(c["kernels"] for c in counts["counts"] if c["site"] == "compiled")
    device_s = sum(seconds(c) for c in counts["counts"])
    spent = max(0.0, launching - device_s) + pageable / PAGEABLE_BYTES_PER_S
    return spent + (args.images * PREPARE_S if waits and in_loop else 0.0)


def useful_flop(images: int) -> float:
    """Of training on an image, real tokens alone."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from caft.config import load_model_config
    from caft.cost import Workload, flops

    return flops(load_model_config("caft_b"), Workload(33.0, 8, images * 8, 256)).training


def print_parts(parts: dict[str, Part]) -> None:
    print("| part | operations | kernels | GB | TFLOP | ms |\n|---|---|---|---|---|---|")
    total = Part()
    for name, part in parts.items():
        print_part(name, part)
        for field in vars(total):
            setattr(total, field, getattr(total, field) + getattr(part, field))
    print_part("all", total)


def print_part(name: str, part: Part) -> None:
    print(
        f"| {name} | {part.ops:,} | {part.kernels:,} | {part.bytes / GIGA:.1f} | "
        f"{part.flop / TERA:.2f} | {part.seconds * MS:.1f} |"
    )


if __name__ == "__main__":
    main()
