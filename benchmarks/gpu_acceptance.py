# ruff: noqa: E402  (paths first)
"""Accepts a machine with 1 to 8 GPUs in ten minutes: is it right, and how fast beside what was
predicted.

Checks driver and cards, compares the model with numbers on file, times the recipe's step by part
and by kind of kernel, finds the largest batch, measures ingest and the link between cards, trains
200 steps on scenes and scores them. Each section has a process and a time limit of its own, and
one that fails leaves the others. Prints a report; acceptance.json has all numbers. Without a GPU
it runs in small form, which shows that it runs.

    python benchmarks/gpu_acceptance.py [--out runs/acceptance] [--only SECTION ...]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import torch
from acceptance import machine, parity, steps
from acceptance.report import report

MOST_WORKERS = 8


@dataclass(frozen=True)
class Section:
    """A part of the acceptance: `limit_s` on a machine with GPUs."""

    run: Callable[[int, bool, Path], Any]
    limit_s: int


def _batches(workers: int, small: bool, out: Path) -> Any:
    seconds = 10 if small else 80
    return steps.largest_batch(steps.SMALL if small else steps.Asked(), time.monotonic() + seconds)


def _ingest(workers: int, small: bool, out: Path) -> Any:
    from acceptance import runs  # which starts Ray

    return runs.ingest(small)


def _training(workers: int, small: bool, out: Path) -> Any:
    from acceptance import runs

    return runs.training(workers, small)


def _plain(workers: int, small: bool, out: Path) -> Any:
    from acceptance import runs

    return runs.plain(small)


SECTIONS = {
    "environment": Section(lambda workers, small, out: machine.environment(workers), 30),
    "parity": Section(
        lambda workers, small, out: parity.parity(torch.device("cpu" if small else "cuda")),
        60,
    ),
    "all_reduce": Section(lambda workers, small, out: machine.all_reduce(workers, small), 60),
    "step": Section(
        lambda workers, small, out: steps.step(
            workers, steps.SMALL if small else steps.Asked(), str(out)
        ),
        300,
    ),
    "plain": Section(_plain, 60),
    "batches": Section(_batches, 120),
    "ingest": Section(_ingest, 90),
    "training": Section(_training, 120),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/acceptance"), help="a folder")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    cuda = torch.cuda.is_available()
    workers = min(MOST_WORKERS, torch.cuda.device_count()) if cuda else 1
    args.out.mkdir(parents=True, exist_ok=True)
    if args.section is not None:
        result = SECTIONS[args.section].run(workers, not cuda, args.out)
        (args.out / f"{args.section}.json").write_text(json.dumps(result))
        return
    started, found, failed = time.monotonic(), dict[str, Any](), dict[str, str]()
    for name in args.only:
        begun = time.monotonic()
        problem = _in_its_own_process(name, args.out, None if not cuda else SECTIONS[name].limit_s)
        if problem is None:
            found[name] = json.loads((args.out / f"{name}.json").read_text())
        else:
            failed[name] = problem
        print(f"{name}: {problem or 'done'}, {time.monotonic() - begun:.0f} s", flush=True)
    result = {
        "format": 1,
        "small": not cuda,
        "sections": found,
        "failed": failed,
        "seconds": time.monotonic() - started,
    }
    (args.out / "acceptance.json").write_text(json.dumps(result, indent=1) + "\n")
    lines, accepted = report(result)
    (args.out / "acceptance.md").write_text(lines)
    print(f"\n{lines}\nAll numbers: {args.out / 'acceptance.json'}")
    sys.exit(0 if accepted else 1)


def _in_its_own_process(name: str, out: Path, limit_s: int | None) -> str | None:
    """Why a section failed; None where it did not. What it prints is in its log."""
    (out / f"{name}.json").unlink(missing_ok=True)
    command = [sys.executable, __file__, "--section", name, "--out", str(out)]
    with (out / f"{name}.log").open("w") as log:
        try:
            code = subprocess.run(command, stdout=log, stderr=log, timeout=limit_s).returncode
        except subprocess.TimeoutExpired:
            return f"not done in {limit_s} s, see {out / name}.log"
    if code == 0:
        return None
    lines = (out / f"{name}.log").read_text(errors="replace").strip().splitlines()
    return f"{lines[-1][:200] if lines else code}, see {out / name}.log"


if __name__ == "__main__":
    main()
