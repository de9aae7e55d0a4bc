"""Hard scenes to train and test small models on, for the benchmarks that compare such models.

Scenes are drawn once into a folder. Training keeps a constant rate, and every length that is asked
for leaves this trunk for a cool-down of its own. Time is that of one processor core.
"""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import caft
from caft.caption_sampling import sample_parts
from caft.captions import even_chunks
from caft.config import load_model_config
from caft.losses import caft_loss
from caft.metrics import binarise, mask_iou
from caft.metrics.retrieval import ranks
from caft.model import CAFT, ImageFeatures, TextFeatures
from caft.scoring import score_names
from caft.superpixels import superpixel_labels
from pipelines.demo.scenes import Scene, SceneConfig, contrast_groups, render_scene
from pipelines.train.config import OptimizerConfig
from pipelines.train.schedule import cooldown_steps, learning_rate, parameter_groups

HARD = SceneConfig(hard=True)
BATCH = 32
KINDS = ("attribute", "position", "swap")
GROUP, GROUPS = 4, 150
GALLERY = 500
LOCALISED = 200
TEST_SEED, CHECK_SEED = 1_000_000, 2_000_000
CHECKED = 320  # held-out scenes whose loss chooses a learning rate
ALPHAS = {"whole": 0.0, "blended": 0.3, "part": 0.3}
ENCODED = 100  # captions or images at once


@dataclass(frozen=True)
class Scenes:
    """N scenes, without their masks.

    Attributes:
        images: (N, 3, H, W) uint8.
        superpixels: (N, H, W) uint8, as caft_xs cuts them.
        sentences: of each scene's caption.
        summaries: one sentence for each scene that names all its objects.
    """

    images: Tensor
    superpixels: Tensor
    sentences: list[list[str]]
    summaries: list[str]

    def told(self, how: str) -> list[list[str]]:
        """Captions: 'plain', or with the 'summary first' or 'summary last'."""
        if how == "plain":
            return self.sentences
        pairs = zip(self.summaries, self.sentences, strict=True)
        return [[s, *told] if how == "summary first" else [*told, s] for s, told in pairs]


def optimizer_of(lr: float) -> OptimizerConfig:
    return OptimizerConfig(
        lr=lr,
        weight_decay=0.05,
        warmup_steps=30,
        grad_clip=1.0,
        schedule="constant_cooldown",
        cooldown_fraction=0.25,
    )


def training_scenes(folder: Path, count: int) -> Scenes:
    """The first `count` scenes; those that were drawn for a longer training serve too."""
    drawn = [int(file.parent.name.split("-")[1]) for file in folder.glob("train-*/captions.json")]
    most = min((n for n in drawn if n >= count), default=count)
    scenes = _kept(folder, "train", most, lambda: (render_scene(n, HARD) for n in range(most)))
    return Scenes(
        scenes.images[:count],
        scenes.superpixels[:count],
        scenes.sentences[:count],
        scenes.summaries[:count],
    )


def checked_scenes(folder: Path) -> Scenes:
    seeds = range(CHECK_SEED, CHECK_SEED + CHECKED)
    return _kept(folder, "check", CHECKED, lambda: (render_scene(n, HARD) for n in seeds))


def gallery_scenes(folder: Path) -> Scenes:
    seeds = range(TEST_SEED, TEST_SEED + GALLERY)
    return _kept(folder, "gallery", GALLERY, lambda: (render_scene(n, HARD) for n in seeds))


def contrast_scenes(folder: Path, kind: Any) -> Scenes:
    """Groups of scenes that differ in one way, one group after the other."""
    seeds = range(TEST_SEED, TEST_SEED + GROUPS)
    groups = (scene for n in seeds for scene in contrast_groups(n, HARD, kind, GROUP))
    return _kept(folder, kind, GROUPS * GROUP, lambda: groups)


def _kept(folder: Path, name: str, count: int, draw: Any) -> Scenes:
    """Scenes as files of `folder`, drawn where they are not there yet."""
    side = HARD.image_size_px
    target = folder / f"{name}-{count}"
    shapes = {"images": (count, 3, side, side), "superpixels": (count, side, side)}
    if not (target / "captions.json").exists():
        target.mkdir(parents=True, exist_ok=True)
        files = {
            key: np.lib.format.open_memmap(target / f"{key}.npy", "w+", np.uint8, shape)
            for key, shape in shapes.items()
        }
        sentences, summaries = [], []
        cut = load_model_config("caft_xs").image.superpixels
        for n, scene in enumerate(draw()):
            pixels = scene.image.transpose(2, 0, 1)
            files["images"][n] = pixels
            files["superpixels"][n] = superpixel_labels(torch.from_numpy(pixels.copy())[None], cut)
            sentences.append(list(scene.sentences))
            summaries.append(summary(scene))
        write_json(target / "captions.json", [sentences, summaries])
    sentences, summaries = json.loads((target / "captions.json").read_text())
    images, superpixels = (
        torch.from_numpy(np.load(target / f"{key}.npy", mmap_mode="c")) for key in shapes
    )
    return Scenes(images, superpixels, sentences, summaries)


def summary(scene: Scene) -> str:
    """One sentence that names a scene's objects by colour and shape, and says nothing else."""
    names = [f"a {item.colour} {item.shape}" for item in scene.objects]
    return f"The picture has {', '.join(names[:-1])} and {names[-1]}"


def train(
    config: str | dict,
    scenes: Scenes,
    captions: Sequence[Sequence[str]],
    lr: float,
    seed: int,
    lengths: Sequence[int],
    parts: tuple[int, int] | None = None,
) -> Iterator[tuple[int, CAFT, float]]:
    """Models trained for each of `lengths` steps, in ascending order, and the seconds it took.

    Args:
        captions: sentences of each scene.
        parts: chunks in reading order and random sub-captions of each scene; None: the model's
            chunks alone.
    """
    model, settings = new_model(config, seed), optimizer_of(lr)
    optimizer = _adamw(model, settings)
    chunks, extra = parts or (model.config.text.chunks, 0)
    rows = _batches(len(captions), seed)

    def advance(model: CAFT, optimizer: torch.optim.Optimizer, steps: range, total: int) -> float:
        started = time.process_time()
        model.train()
        for step in steps:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, total, settings)
            optimizer.zero_grad()
            batch_loss(model, scenes, captions, rows(step), step, chunks, extra).backward()
            assert settings.grad_clip is not None
            nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
            optimizer.step()
            model.clamp_scales_()
        return time.process_time() - started

    done, seconds = 0, 0.0
    for length in sorted(set(lengths)):
        leave = length - cooldown_steps(length, settings)
        seconds += advance(model, optimizer, range(done, leave), length)
        done = leave
        branch = copy.deepcopy(model)
        own = _adamw(branch, settings)
        own.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        cooled = advance(branch, own, range(leave, length), length)
        yield length, branch.eval(), seconds + cooled


def new_model(config: str | dict, seed: int = 0) -> CAFT:
    torch.manual_seed(seed)
    return caft.create_model(config)


def _adamw(model: nn.Module, settings: OptimizerConfig) -> torch.optim.AdamW:
    groups = parameter_groups(model, settings.weight_decay)
    return torch.optim.AdamW(groups, lr=0.0, betas=settings.betas)


def _batches(count: int, seed: int) -> Any:
    """Rows of a step; each epoch has an order of its own."""
    steps = count // BATCH

    def rows(step: int) -> np.ndarray:
        epoch, place = divmod(step, steps)
        order = np.random.default_rng([seed, epoch]).permutation(count)
        return np.sort(order[place * BATCH : (place + 1) * BATCH])

    return rows


def batch_loss(
    model: CAFT,
    scenes: Scenes,
    captions: Sequence[Sequence[str]],
    rows: np.ndarray,
    step: int,
    chunks: int,
    extra: int = 0,
) -> Tensor:
    rng = np.random.default_rng(step)
    texts = [[{"kind": "long", "sentences": list(captions[n])}] for n in rows]
    drawn = [part for text in texts for part in sample_parts(text, rng, chunks, extra)]
    tokens = model.tokenize(drawn).view(len(rows), chunks + extra, -1)
    features, embedded = model(scenes.images[rows], tokens, scenes.superpixels[rows].long())
    return caft_loss(features, embedded, model, seed=step).total


@torch.no_grad()
def checked_loss(model: CAFT, scenes: Scenes) -> float:
    """Mean loss of held-out scenes in batches like those of training."""
    chunks = model.config.text.chunks
    losses = [
        batch_loss(model, scenes, scenes.sentences, np.arange(n, n + BATCH), n, chunks).item()
        for n in range(0, len(scenes.sentences), BATCH)
    ]
    return float(np.mean(losses))


@torch.inference_mode()
def encode(
    model: CAFT, scenes: Scenes, captions: Sequence[Sequence[str]]
) -> tuple[ImageFeatures, TextFeatures]:
    images, texts = [], []
    chunks = model.config.text.chunks
    for start in range(0, len(captions), ENCODED):
        share = slice(start, start + ENCODED)
        images.append(model.encode_image(scenes.images[share], scenes.superpixels[share].long()))
        pieces = [p for caption in captions[share] for p in even_chunks(caption, chunks)]
        tokens = model.tokenize(pieces)
        texts.append(model.encode_text(tokens.view(-1, chunks, tokens.shape[-1])))
    return _joined(images), TextFeatures(
        *(torch.cat([getattr(text, name) for text in texts]) for name in ("parts", "whole"))
    )


def _joined(parts: Sequence[ImageFeatures]) -> ImageFeatures:
    whole, fine, fine_cls, coarse = (
        torch.cat([getattr(part, name) for part in parts])
        for name in ("whole", "fine", "fine_cls", "coarse")
    )
    return ImageFeatures(whole, fine, fine_cls, coarse, [], torch.empty(0))


def found(
    model: CAFT, scenes: Scenes, captions: Sequence[Sequence[str]], group: int
) -> dict[str, list[float]]:
    """Of each scene, how much of it is found first among the scenes of its group: 0, 0.5 or 1, as
    text to image and image to text are. By kind of score. Ties count as misses."""
    images, texts = encode(model, scenes, captions)
    result = {}
    for kind in score_names(model.config):
        hits = []
        for start in range(0, len(captions), group):
            share = slice(start, start + group)
            score = model.score(_rows(images, share), _rows(texts, share), alpha=ALPHAS[kind])
            both = ranks(score, torch.arange(score.shape[1]))
            hits += ((both[0] == 1).double() + (both[1] == 1).double()).div(2).tolist()
        result[kind] = hits
    return result


def _rows(features: Any, share: slice) -> Any:
    fields = features.__dataclass_fields__
    kept = {name: getattr(features, name) for name in fields}
    return type(features)(
        **{
            name: value[share] if isinstance(value, Tensor) and len(value) else value
            for name, value in kept.items()
        }
    )


def overlaps(model: CAFT) -> list[float]:
    """Mean IoU of sentence heat maps with what the sentences speak of, in each test scene."""
    result = []
    for n in range(LOCALISED):
        scene = render_scene(TEST_SEED + n, HARD)
        heat = caft.localize(model, scene.image, list(scene.sentences))
        result.append(float(mask_iou(binarise(heat), np.stack(scene.masks)).mean()))
    return result


def write_json(path: Path, content: Any) -> None:
    """A file that is there completely or not at all."""
    beside = path.with_suffix(f".{os.getpid()}")
    beside.write_text(json.dumps(content))
    beside.replace(path)


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What `make` returned, this time or an earlier one."""
    if not path.exists():
        write_json(path, make())
    return json.loads(path.read_text())


def run_all(processes: int, jobs: Sequence[Callable[[], None]]) -> None:
    """All jobs, so many at once, each in a process with one thread."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        processes, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for job in as_completed([pool.submit(job) for job in jobs]):
            job.result()
