"""CAFT against its controls on hard scenes: equal samples and equal seconds, three seeds each.

Trains caft_xs, caft_xs without its part losses, the flat clip_xs and flair_xs on scenes of which
none comes twice. The learning rate of each is the best of three on a quarter of the scenes, by its
loss on held-out ones. Equal seconds are those that the fastest of them needs for all scenes, of one
processor core, whatever else the machine does; what a model needs for a step is measured in turns.
Then prints R@1 within groups of scenes that differ in one way only and among 500, the overlap of
sentence heat maps with masks, and paired differences with their intervals.

    python benchmarks/hard_scenes.py [--scenes 30000] [--output runs/hard_scenes]

What is finished is kept in the output, and the same command continues from there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import scene_arms as arms
import torch
from scene_arms import BATCH, GALLERY, GROUP, KINDS, LOCALISED

from caft.metrics import centre_box, mask_iou
from caft.metrics.intervals import Difference, Estimate, difference, holm, ratio
from caft.scoring import score_names
from pipelines.demo.scenes import render_scene

MODELS: dict[str, str | dict] = {
    "caft_xs": "caft_xs",
    "caft_xs without part losses": {"base": "caft_xs", "losses": {"parts": False}},
    "clip_xs": "clip_xs",
    "flair_xs": "flair_xs",
}
RATES = (5e-4, 1e-3, 2e-3)
RATE_SHARE = 4  # a rate is chosen on one of so many parts of the scenes
SEEDS = (0, 1, 2)
TIMED_ROUNDS, TIMED_STEPS = 4, 5
MEASURES = (*KINDS, f"among {GALLERY}", "mIoU")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=30_000)
    parser.add_argument("--output", type=Path, default=Path("runs/hard_scenes"))
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    folder = args.output / f"{args.scenes}"
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for draw in (arms.checked_scenes, arms.gallery_scenes):
        draw(args.output)
    for kind in KINDS:
        arms.contrast_scenes(args.output, kind)
    arms.training_scenes(args.output, args.scenes)
    seconds = arms.kept(folder / "seconds.json", partial(seconds_a_step, args.output, args.scenes))

    steps = args.scenes // BATCH
    tried = [(name, rate) for rate in RATES for name in MODELS]
    arms.run_all(
        args.processes, [partial(try_rate, args.output, folder, args.scenes, *job) for job in tried]
    )
    rates = {name: min(RATES, key=partial(rate_loss, folder, name)) for name in MODELS}
    fastest = min(seconds.values())
    lengths = {name: sorted({round(steps * fastest / seconds[name]), steps}) for name in MODELS}
    runs = [
        partial(train, args.output, folder, args.scenes, name, rates[name], seed, lengths[name])
        for seed in SEEDS
        for name in MODELS
    ]
    arms.run_all(args.processes, runs)
    for line in report(folder, args.scenes, seconds, rates, lengths):
        print(line)


def seconds_a_step(data: Path, count: int) -> dict[str, float]:
    """Of each model; the models take turns, so that what else the machine does slows all alike."""
    scenes = arms.training_scenes(data, count)
    models = {name: arms.new_model(config) for name, config in MODELS.items()}
    spent: dict[str, list[float]] = {name: [] for name in models}
    for step in range(TIMED_ROUNDS * TIMED_STEPS):
        rows = np.arange(step * BATCH, (step + 1) * BATCH)
        for name, model in models.items():
            started = time.process_time()
            chunks = model.config.text.chunks
            arms.batch_loss(model, scenes, scenes.sentences, rows, step, chunks).backward()
            model.zero_grad()
            spent[name].append(time.process_time() - started)
    return {name: statistics.median(values[TIMED_STEPS:]) for name, values in spent.items()}


def slug(name: str) -> str:
    return name.replace(" ", "_")


def rate_file(folder: Path, name: str, rate: float) -> Path:
    return folder / f"rate-{slug(name)}-{rate:g}.json"


def rate_loss(folder: Path, name: str, rate: float) -> float:
    return float(json.loads(rate_file(folder, name, rate).read_text()))


def try_rate(data: Path, folder: Path, count: int, name: str, rate: float) -> None:

    def make() -> float:
        scenes = arms.training_scenes(data, count)
        steps = count // BATCH // RATE_SHARE
        runs = arms.train(MODELS[name], scenes, scenes.sentences, rate, len(SEEDS), [steps])
        return arms.checked_loss(next(runs)[1], arms.checked_scenes(data))

    arms.kept(rate_file(folder, name, rate), make)


def run_file(folder: Path, name: str, seed: int, length: int) -> Path:
    return folder / f"run-{slug(name)}-{seed}-{length}.json"


def train(
    data: Path, folder: Path, count: int, name: str, rate: float, seed: int, lengths: list[int]
) -> None:
    """A model trained for each of the lengths, and what each finds, as files."""
    lengths = [n for n in lengths if not run_file(folder, name, seed, n).exists()]
    if not lengths:
        return
    scenes = arms.training_scenes(data, count)
    for length, model, spent in arms.train(
        MODELS[name], scenes, scenes.sentences, rate, seed, lengths
    ):
        asked = {kind: (arms.contrast_scenes(data, kind), GROUP) for kind in KINDS}
        asked[f"among {GALLERY}"] = (arms.gallery_scenes(data), GALLERY)
        hits = {
            measure: arms.found(model, tested, tested.sentences, group)
            for measure, (tested, group) in asked.items()
        }
        result = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "seconds": spent,
            "hits": hits,
            "mIoU": arms.overlaps(model),
        }
        arms.write_json(run_file(folder, name, seed, length), result)


def report(
    folder: Path, count: int, seconds: dict, rates: dict, lengths: dict[str, list[int]]
) -> Iterator[str]:
    longest = {name: max(steps) for name, steps in lengths.items()}
    shortest = {name: min(steps) for name, steps in lengths.items()}
    yield f"{count:,} hard scenes to train on, each once; {len(SEEDS)} seeds of each model."
    yield ""
    yield (
        "| model | parameters | seconds a step | held-out loss at a rate of "
        + " | ".join(f"{rate:g}" for rate in RATES)
        + " | chosen |"
    )
    yield "|---" * (4 + len(RATES)) + "|"
    for name in MODELS:
        size = json.loads(run_file(folder, name, 0, longest[name]).read_text())["parameters"]
        losses = " | ".join(f"{rate_loss(folder, name, rate):.2f}" for rate in RATES)
        yield (f"| {name} | {size / 1e6:.2f}M | {seconds[name]:.3f} | {losses} | {rates[name]:g} |")
    centre = 100 * float(np.mean([*centre_overlaps()]))
    for title, steps in (("Equal samples", longest), ("Equal seconds", shortest)):
        yield f"\n**{title}**, in per cent; mean over seeds ± their standard deviation"
        yield f"\n| model, score | samples | seconds | {' | '.join(MEASURES)} |"
        yield "|---" * (3 + len(MEASURES)) + "|"
        for name in MODELS:
            runs = [read(folder, name, seed, steps[name]) for seed in SEEDS]
            spent = statistics.mean(run["seconds"] for run in runs)
            for kind in kinds(name):
                cells = " | ".join(spread(runs, measure, kind) for measure in MEASURES)
                yield f"| {name}, {kind} | {steps[name] * BATCH:,} | {spent:.0f} | {cells} |"
        yield f"\n**{title}: by how much caft_xs is better**, in points; 95% intervals, p by Holm"
        yield f"\n| than | {' | '.join(MEASURES)} |"
        yield "|---" * (1 + len(MEASURES)) + "|"
        yield from differences(folder, steps)
    yield f"\nA box in the middle of the image has an mIoU of {centre:.1f} without any model."


def read(folder: Path, name: str, seed: int, length: int) -> dict:
    return json.loads(run_file(folder, name, seed, length).read_text())


def kinds(name: str) -> tuple[str, ...]:
    """Kinds of score of a model, its own first."""
    return score_names(arms.new_model(MODELS[name]).config)[::-1]


def values(run: dict, measure: str, kind: str) -> np.ndarray:
    """Of each unit that is drawn alone: scenes, or groups of scenes."""
    if measure == "mIoU":
        return np.array(run["mIoU"])
    hits = np.array(run["hits"][measure][kind])
    return hits.reshape(-1, GROUP).mean(axis=1) if measure in KINDS else hits


def spread(runs: list[dict], measure: str, kind: str) -> str:
    means = [100 * float(values(run, measure, kind).mean()) for run in runs]
    return f"{statistics.mean(means):.1f} ± {statistics.stdev(means):.1f}"


def estimate(folder: Path, name: str, steps: dict[str, int], measure: str) -> Estimate:
    """Of a model's own score, over seeds and scenes."""
    own = kinds(name)[0]
    each = [values(read(folder, name, seed, steps[name]), measure, own) for seed in SEEDS]
    mean = np.mean(each, axis=0)
    return ratio(mean, np.ones(len(mean)))


def differences(folder: Path, steps: dict[str, int]) -> Iterator[str]:
    others = [name for name in MODELS if name != "caft_xs"]
    found: dict[tuple[str, str], Difference] = {
        (name, measure): difference(
            estimate(folder, name, steps, measure), estimate(folder, "caft_xs", steps, measure)
        )
        for name in others
        for measure in MEASURES
    }
    corrected = dict(zip(found, holm([d.p for d in found.values()]), strict=True))
    for name in others:
        cells = []
        for measure in MEASURES:
            d, p = found[name, measure], corrected[name, measure]
            said = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
            cells.append(
                f"{100 * d.value:+.1f} ({100 * d.low:+.1f} to {100 * d.high:+.1f}), {said}"
            )
        yield f"| {name} | {' | '.join(cells)} |"


def centre_overlaps() -> Iterator[float]:
    for n in range(LOCALISED):
        masks = np.stack(render_scene(arms.TEST_SEED + n, arms.HARD).masks)
        yield from mask_iou(centre_box(*masks.shape[1:])[None], masks).tolist()


if __name__ == "__main__":
    main()
