"""Three questions to small models on hard scenes: shortcuts, sub-captions, amount of data.

    python benchmarks/scene_trends.py [--samples 16000] [--output runs/hard_scenes]

Shortcut: captions begin with one sentence that names all objects, in training; in the test it is
there, dropped or last. Groups of scenes that differ in one position have the same such sentence, so
who reads nothing else is at chance there. Sub-captions: flair_xs with K of them a step, each of one
to three random sentences. Data: as many samples of 1,000, 4,000 and 16,000 different scenes. R@1 is
that of the model's own score, with 95% intervals over scenes; one seed. What is finished is kept in
the output, and the same command continues from there.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import scene_arms as arms
import torch
from scene_arms import BATCH, GALLERY, GROUP

from caft.metrics.intervals import interval, ratio
from caft.scoring import score_names

MODELS = ("caft_xs", "clip_xs", "flair_xs")
RATE = 1e-3
TELLINGS = ("plain", "summary first", "summary last")
SUB_CAPTIONS = (1, 2, 4, 8)
ROWS = (1000, 4000, 16_000)
POSITION, AMONG = "position", f"among {GALLERY}"


@dataclass(frozen=True)
class Run:
    """One training; `parts` are random sub-captions a step, None: the model's own chunks."""

    model: str
    rows: int
    told: str = "plain"
    parts: int | None = None

    @property
    def name(self) -> str:
        return f"{self.model}-{self.rows}-{self.told.replace(' ', '_')}-{self.parts or 'chunks'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=16_000, help="of each training")
    parser.add_argument("--output", type=Path, default=Path("runs/hard_scenes"))
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    folder = args.output / f"trends-{args.samples}"
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    arms.training_scenes(args.output, args.samples)
    arms.gallery_scenes(args.output)
    arms.contrast_scenes(args.output, POSITION)
    rows = [n for n in ROWS if n < args.samples] + [args.samples]
    told = [Run(model, args.samples, how) for model in MODELS for how in TELLINGS[:2]]
    sub_captions = [Run("flair_xs", args.samples, parts=k) for k in SUB_CAPTIONS]
    data = [Run(model, n) for model in MODELS for n in rows]
    runs = list(dict.fromkeys([*told, *sub_captions, *data]))
    jobs = [partial(train, args.output, folder, args.samples, run) for run in runs]
    arms.run_all(args.processes, jobs)
    for line in report(folder, args.samples, told, sub_captions, data):
        print(line)


def train(data: Path, folder: Path, samples: int, run: Run) -> None:
    def make() -> dict[str, dict[str, list[float]]]:
        scenes = arms.training_scenes(data, samples)
        captions = scenes.told(run.told)[: run.rows]
        parts = None if run.parts is None else (0, run.parts)
        steps = [samples // BATCH]
        model = next(arms.train(run.model, scenes, captions, RATE, 0, steps, parts))[1]
        own = score_names(model.config)[-1]
        found = {}
        tested = {AMONG: arms.gallery_scenes(data), POSITION: arms.contrast_scenes(data, POSITION)}
        for measure, asked in tested.items():
            group = GALLERY if measure == AMONG else GROUP
            found[measure] = {
                how: arms.found(model, asked, asked.told(how), group)[own]
                for how in (TELLINGS if run.told != "plain" else TELLINGS[:1])
            }
        return found

    arms.kept(folder / f"{run.name}.json", make)


def report(
    folder: Path, samples: int, told: list[Run], sub_captions: list[Run], data: list[Run]
) -> Iterator[str]:
    yield f"R@1 in per cent with 95% intervals; {samples:,} samples to train on, one seed."
    yield f"\n| model | captions in training | in the test | {AMONG} | groups of a {POSITION} |"
    yield "|---|---|---|---|---|"
    for run in told:
        for how in TELLINGS if run.told != "plain" else TELLINGS[:1]:
            test = "summary dropped" if run.told != "plain" and how == "plain" else how
            yield f"| {run.model} | {run.told} | {test} | {cells(folder, run, how)} |"
    yield f"\n| flair_xs, sub-captions a step | {AMONG} | groups of a {POSITION} |"
    yield "|---|---|---|"
    for run in sub_captions:
        yield f"| {run.parts} | {cells(folder, run)} |"
    yield f"\n| model | different scenes | {AMONG} | groups of a {POSITION} |"
    yield "|---|---|---|---|"
    for run in data:
        yield f"| {run.model} | {run.rows:,} | {cells(folder, run)} |"


def cells(folder: Path, run: Run, how: str = "plain") -> str:
    found = arms.kept(folder / f"{run.name}.json", dict)
    said = []
    for measure in (AMONG, POSITION):
        hits = np.array(found[measure][how])
        each = hits.reshape(-1, GROUP).mean(axis=1) if measure == POSITION else hits
        estimate = ratio(each, np.ones(len(each)))
        low, high = interval(estimate)
        said.append(f"{100 * estimate.value:.1f} ({100 * low:.1f} to {100 * high:.1f})")
    return " | ".join(said)


if __name__ == "__main__":
    main()
