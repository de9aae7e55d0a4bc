"""What fine-tuning buys, and what it costs of what the start knew, on scenes.

Trains caft_xs on simple scenes, then fine-tunes it in several ways on a few hard scenes, which have
more objects, textures and overlaps. Prints R@1 on test scenes of both kinds, text to image and
image to text averaged; every way makes the same steps on the same batches.

    python benchmarks/fine_tuning.py [--start-steps 3000] [--steps 600] [--scenes 1000]
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass
from itertools import islice

import torch
from learn_scenes import HARD, TEST_SEED, as_tensor, batches, loss, new_model, scores
from torch import nn

from caft.fine_tuning import freeze_, layer_scales, mixed_weights
from caft.metrics import retrieval_recall
from caft.model import CAFT
from caft.superpixels import superpixel_labels
from pipelines.demo.scenes import SceneConfig, render_scene
from pipelines.train.config import FineTuneConfig, OptimizerConfig
from pipelines.train.schedule import learning_rate, parameter_groups

MODEL, SIMPLE = "caft_xs", SceneConfig()
START_SCENES, START_SEED = 6000, 2_000_000
LR = 7e-4
TEST_SCENES = 500
ALL, SMALL = FineTuneConfig(), 0.2 * LR


@dataclass(frozen=True)
class Way:
    """One way to train on the hard scenes."""

    name: str
    lr: float = SMALL
    tuned: FineTuneConfig = ALL
    from_start: bool = True


WAYS = (
    Way("from random weights, pretraining's rate", LR, from_start=False),
    Way("all weights, pretraining's rate", LR),
    Way("all weights, a fifth of the rate (open_clip's way)"),
    Way("+ layer_decay 0.8", LR, FineTuneConfig(layer_decay=0.8)),
    Way("+ layer_decay 0.8, start_share 0.3", LR, FineTuneConfig(layer_decay=0.8, start_share=0.3)),
    Way("image encoder frozen", LR, FineTuneConfig(freeze=("image_encoder.*",))),
    Way("text encoders frozen", LR, FineTuneConfig(freeze=("*_text_encoder.*",))),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start-steps", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=600, help="of fine-tuning")
    parser.add_argument("--scenes", type=int, default=1000, help="hard ones to fine-tune on")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = new_model(MODEL)
    simple = scenes_of(SIMPLE, range(START_SEED, START_SEED + START_SCENES), start)
    train(start, simple, args.start_steps, LR, ALL)
    hard = scenes_of(HARD, range(args.scenes), start)
    print(
        f"{MODEL}, {args.start_steps:,} steps on {START_SCENES:,} simple scenes, then "
        f"{args.steps:,} on {args.scenes:,} hard ones\n\n"
        f"R@1 (%) among {TEST_SCENES} scenes, both ways averaged\n"
        "| | hard scenes | simple scenes |\n|---|---|---|"
    )
    print_row("the start", start)
    for way in WAYS:
        model = copy.deepcopy(start) if way.from_start else new_model(MODEL)
        freeze_(model, way.tuned.freeze)
        train(model, hard, args.steps, way.lr, way.tuned)
        if way.tuned.start_share:
            share = way.tuned.start_share
            model.load_state_dict(mixed_weights(start.state_dict(), model.state_dict(), share))
        print_row(way.name, model)


def scenes_of(config: SceneConfig, seeds: range, model: CAFT) -> tuple:
    scenes = [render_scene(seed, config) for seed in seeds]
    images = as_tensor(scenes)
    return scenes, images, superpixel_labels(images, model.config.image.superpixels)


def train(model: CAFT, data: tuple, steps: int, lr: float, tuned: FineTuneConfig) -> None:
    config = OptimizerConfig(lr=lr, weight_decay=0.05, warmup_steps=100, grad_clip=1.0)
    groups = parameter_groups(model, config.weight_decay, layer_scales(model, tuned.layer_decay))
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=config.betas)
    model.train()
    for step, rows in enumerate(islice(batches(len(data[0])), steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, config) * group["lr_scale"]
        optimizer.zero_grad()
        loss(model, data, rows, step).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.clamp_scales_()
    model.eval()


def print_row(name: str, model: CAFT) -> None:
    numbers = []
    for config in (HARD, SIMPLE):
        scenes = [render_scene(TEST_SEED + n, config) for n in range(TEST_SCENES)]
        recall = retrieval_recall(scores(model, 0.3, scenes), torch.arange(TEST_SCENES))
        numbers.append(f"{50 * (recall['t2i_r1'] + recall['i2t_r1']):.1f}")
    print(f"| {name} | {' | '.join(numbers)} |", flush=True)


if __name__ == "__main__":
    main()
