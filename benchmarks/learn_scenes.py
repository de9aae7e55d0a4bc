"""What the losses and segments buy, on hard scenes: CAFT against its controls, equal time each.

Trains caft_xs, caft_xs without its part losses and the flat clip_xs on the same hard scenes, each
for the same seconds of one processor core, whatever else the machine does. Then prints R@1 within
groups of scenes that differ in one way only, and the overlap of sentence heat maps with masks.
Ties count as misses.

    python benchmarks/learn_scenes.py [--seconds 720] [--scenes 6000]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

import caft
from caft.caption_sampling import sample_parts
from caft.captions import even_chunks
from caft.losses import caft_loss
from caft.metrics import binarise, centre_box, mask_iou, retrieval_recall
from caft.model import CAFT, ImageFeatures, TextFeatures
from caft.superpixels import superpixel_labels
from pipelines.demo.scenes import Scene, SceneConfig, contrast_groups, render_scene
from pipelines.train.config import OptimizerConfig
from pipelines.train.schedule import learning_rate, parameter_groups

HARD = SceneConfig(hard=True)
BATCH = 32
GROUP = 4
GROUPS_PER_KIND = 150
RETRIEVAL_SCENES = 500
LOCALISED_SCENES = 200
KINDS = ("attribute", "position", "swap")
TEST_SEED = 1_000_000
OPTIMIZER = OptimizerConfig(lr=7e-4, weight_decay=0.05, warmup_steps=100, grad_clip=1.0)
MODELS = {
    "caft_xs": "caft_xs",
    "caft_xs without part losses": {"base": "caft_xs", "losses": {"parts": False}},
    "clip_xs": "clip_xs",
}
ScoreFn = Callable[[list[Scene]], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=720, help="processor time of each model")
    parser.add_argument("--scenes", type=int, default=6000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    scenes = [render_scene(seed, HARD) for seed in range(args.scenes)]
    images = as_tensor(scenes)
    superpixels = superpixel_labels(images, new_model("caft_xs").config.image.superpixels)
    data = (scenes, images, superpixels)

    rows, overlaps = [], {"centre box, no model": np.mean([*centre_overlaps()])}
    overlaps["caft_xs untrained"] = mean_overlap(new_model("caft_xs"))
    for name, config in MODELS.items():
        model = new_model(config)
        steps = train(model, data, args.seconds)
        overlaps[name] = mean_overlap(model)
        for kind, alpha in score_kinds(model).items():
            scored = partial(scores, model, alpha)
            rows.append((f"{name}, {kind}", parameters(model), steps, evaluate(scored)))
    print_tables(rows, overlaps, args)


def new_model(config: str | dict) -> CAFT:
    torch.manual_seed(0)
    return caft.create_model(config)


def score_kinds(model: CAFT) -> dict[str, float]:
    """What a model can be scored with, and the alpha that asks for it."""
    if not model.config.losses.parts:
        return {"whole": 0.0}
    return {"whole": 0.0, "blended": 0.3}


def train(model: CAFT, data: tuple, seconds: float) -> int:
    """AdamW for `seconds` of a core; the schedule runs on time, so that each ends its cosine."""
    optimizer = torch.optim.AdamW(
        parameter_groups(model, OPTIMIZER.weight_decay), lr=0.0, betas=OPTIMIZER.betas
    )
    model.train()
    started, steps, estimate = time.process_time(), 0, 1000
    for rows in batches(len(data[0])):
        spent = time.process_time() - started
        if spent >= seconds:
            break
        if steps >= 20:
            estimate = round(steps * seconds / spent)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(steps, estimate, OPTIMIZER)
        optimizer.zero_grad()
        loss(model, data, rows, steps).backward()
        assert OPTIMIZER.grad_clip is not None
        nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.grad_clip)
        optimizer.step()
        model.clamp_scales_()
        steps += 1
    model.eval()
    return steps


def batches(count: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(count)
        for start in range(0, count - BATCH + 1, BATCH):
            yield order[start : start + BATCH]


def loss(model: CAFT, data: tuple, rows: np.ndarray, step: int) -> Tensor:
    scenes, images, superpixels = data
    chunks, rng = model.config.text.chunks, np.random.default_rng(step)
    captions = [[{"kind": "long", "sentences": list(scenes[n].sentences)}] for n in rows]
    parts = [part for caption in captions for part in sample_parts(caption, rng, chunks, 0)]
    tokens = model.tokenize(parts).view(len(rows), chunks, -1)
    features, texts = model(images[rows], tokens, superpixels[rows])
    return caft_loss(features, texts, model, seed=step).total


@torch.inference_mode()
def scores(model: CAFT, alpha: float, scenes: list[Scene]) -> Tensor:
    chunks, parts = model.config.text.chunks, []
    for start in range(0, len(scenes), 100):
        part = scenes[start : start + 100]
        cut = [chunk for scene in part for chunk in even_chunks(scene.sentences, chunks)]
        texts = model.encode_text(model.tokenize(cut).view(len(part), chunks, -1))
        parts.append((model.encode_image(as_tensor(part)), texts))
    images = ImageFeatures(
        *(
            torch.cat([getattr(i, n) for i, _ in parts])
            for n in ("whole", "fine", "fine_cls", "coarse")
        ),
        assignments=[],
        superpixels=torch.empty(0),
    )
    texts = TextFeatures(
        *(torch.cat([getattr(t, n) for _, t in parts]) for n in ("parts", "whole"))
    )
    return model.score(images, texts, alpha=alpha)


def evaluate(scored: ScoreFn) -> dict[str, float]:
    """R@1, text to image and image to text averaged, within groups and among many scenes."""
    result = {}
    for kind in KINDS:
        recalls = []
        for n in range(GROUPS_PER_KIND):
            scores = scored(contrast_groups(TEST_SEED + n, HARD, kind, GROUP))
            recall = retrieval_recall(scores, torch.arange(GROUP))
            recalls.append((recall["t2i_r1"] + recall["i2t_r1"]) / 2)
        result[kind] = float(np.mean(recalls))
    scenes = [render_scene(TEST_SEED + n, HARD) for n in range(RETRIEVAL_SCENES)]
    recall = retrieval_recall(scored(scenes), torch.arange(RETRIEVAL_SCENES))
    result["all"] = (recall["t2i_r1"] + recall["i2t_r1"]) / 2
    return result


def mean_overlap(model: CAFT) -> float:
    model.eval()
    overlaps = []
    for n in range(LOCALISED_SCENES):
        scene = render_scene(TEST_SEED + n, HARD)
        heat = caft.localize(model, scene.image, list(scene.sentences))
        overlaps += mask_iou(binarise(heat), np.stack(scene.masks)).tolist()
    return float(np.mean(overlaps))


def centre_overlaps() -> Iterator[float]:
    for n in range(LOCALISED_SCENES):
        masks = np.stack(render_scene(TEST_SEED + n, HARD).masks)
        yield from mask_iou(centre_box(*masks.shape[1:])[None], masks).tolist()


def as_tensor(scenes: list[Scene]) -> Tensor:
    pixels = np.stack([scene.image for scene in scenes])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def print_tables(rows: list, overlaps: dict[str, float], args: argparse.Namespace) -> None:
    print(
        f"Hard scenes, {args.scenes:,} to train on, {args.seconds:g} s of one core for each model\n"
    )
    print(f"R@1 (%), both ways averaged; {GROUPS_PER_KIND} groups of {GROUP} a kind: chance 25")
    print(
        f"| model | parameters | steps | attribute | position | swap | among {RETRIEVAL_SCENES} |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, count, steps, result in rows:
        numbers = " | ".join(f"{100 * result[key]:.1f}" for key in (*KINDS, "all"))
        print(f"| {name} | {count / 1e6:.2f}M | {steps:,} | {numbers} |")
    print(f"\nmIoU (%) of sentence heat maps, {LOCALISED_SCENES} scenes")
    print("| heat map from | mIoU |\n|---|---|")
    for name, value in overlaps.items():
        print(f"| {name} | {100 * value:.1f} |")


if __name__ == "__main__":
    main()
