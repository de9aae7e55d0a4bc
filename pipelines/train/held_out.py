"""The held-out set of a training run, and the Ray task that scores weights on it.
Opened by the driver before any worker starts; asked for by evaluations.py while they train."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from PIL import Image

from caft.config import ModelConfig
from caft.errors import ConfigError, DataError
from caft.metrics import retrieval_recall
from caft.metrics.retrieval import recalls
from caft.model import CAFT, ImageFeatures, TextFeatures
from caft.pictures import draw_panel
from caft.scoring import score_names
from pipelines import user_paths
from pipelines.data.dataset import open_dataset
from pipelines.evaluation_input import CAFTPreprocess, Piece, evaluation_caption, read_piece
from pipelines.failures import one_voice
from pipelines.superpixel_columns import complete_superpixels, unpack_superpixels
from pipelines.train.config import EvaluationConfig, TrainConfig
from pipelines.train.ingest import index_row_groups

PREFIX = "eval/"  # of its metrics, in MLflow and in checkpoints
STARTED = "started"
MOST_SENTENCES = 5  # of a picture: one row of heat maps


@dataclass(frozen=True)
class HeldOutSet:
    """The first images of a split, each with one caption."""

    dataset: str
    split: str
    pieces: tuple[Piece, ...]
    images: int  # the last piece may hold more rows than these need


def open_held_out(config: TrainConfig) -> HeldOutSet | None:
    """The set that `config.evaluation` names; None without one.

    Raises:
        DataError: its dataset is missing or unfinished, or has fewer than two rows in the split.
        ConfigError: a relative path inside a Ray job.
    """
    evaluation = config.evaluation
    if evaluation is None:
        return None
    path = config.dataset
    if evaluation.dataset is not None:
        path = user_paths.usable_path(evaluation.dataset, "evaluation.dataset")
    groups = index_row_groups(open_dataset(path), evaluation.split, "evaluation.split")
    pieces, rows = [], 0
    for group in groups:
        if rows >= evaluation.images:
            break
        pieces.append(Piece(group.file, group.index, rows))
        rows += group.rows
    images = min(rows, evaluation.images)
    if images < 2:
        raise DataError(
            f"{path}: split '{evaluation.split}' has one row, and retrieval needs two; check "
            "evaluation.split"
        )
    return HeldOutSet(path, evaluation.split, tuple(pieces), images)


def check_best_metric(config: TrainConfig, model: ModelConfig) -> None:
    """Raises ConfigError where checkpoints are kept by a metric that no checkpoint will have."""
    checkpoint = config.checkpoint
    if not checkpoint.keep_best:
        return
    known = [f"loss/{name}" for name in ("total", *model.losses.terms)]
    if config.evaluation is not None:
        keys = recalls(torch.ones(1), torch.ones(1))
        known += [f"{PREFIX}{name}_{key}" for name in score_names(model) for key in keys]
    if checkpoint.best_metric not in known:
        missing = checkpoint.best_metric.startswith(PREFIX) and config.evaluation is None
        raise ConfigError(
            f"checkpoint.best_metric: '{checkpoint.best_metric}' is never logged with a checkpoint"
            + ("; set evaluation" if missing else f"; known: {', '.join(known)}")
        )


def start_scoring(
    weights: Any, model: ModelConfig, held_out: HeldOutSet, evaluation: EvaluationConfig
) -> Any:
    """Start a task that scores weights, given by name as arrays in Ray's object store.

    Returns:
        A Ray generator that yields STARTED once the task has a CPU, then its metrics, then the
        pictures of `draw_held_out`.
    """
    return _score_task.options(
        num_cpus=evaluation.num_cpus, num_gpus=evaluation.num_gpus, max_retries=1
    ).remote(weights, model, held_out, evaluation)


@ray.remote(num_returns="streaming")
def _score_task(
    weights: Mapping[str, np.ndarray],
    model: ModelConfig,
    held_out: HeldOutSet,
    evaluation: EvaluationConfig,
) -> Iterator[Any]:
    yield STARTED
    torch.set_num_threads(max(1, int(evaluation.num_cpus)))
    trained = CAFT(model)
    trained.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
    device = torch.device("cuda" if evaluation.num_gpus else "cpu")
    with one_voice(f"{held_out.dataset}, split {held_out.split}"):
        yield score_held_out(trained.to(device), held_out, evaluation)
        yield draw_held_out(trained, held_out, evaluation.heat_maps)


@torch.inference_mode()
def score_held_out(
    model: CAFT, held_out: HeldOutSet, evaluation: EvaluationConfig
) -> dict[str, float]:
    """Recalls of the model on the set, named as the evaluate stage names them, and `seconds`.

    Raises:
        DataError: an image or a superpixel map that cannot be decoded.
    """
    started = time.perf_counter()
    model.eval()
    encoded = list(_encoded(model, held_out, evaluation.batch_size))
    images = ImageFeatures(
        torch.cat([image.whole for image, _ in encoded]),
        torch.cat([image.fine for image, _ in encoded]),
        *(torch.empty(0),) * 2,
        assignments=[],
        superpixels=torch.empty(0),
    )
    texts = TextFeatures(
        torch.cat([text.parts for _, text in encoded]),
        torch.cat([text.whole for _, text in encoded]),
    )
    metrics: dict[str, float] = {}
    for name in score_names(model.config):
        alpha = evaluation.alpha if name == "blended" else 0.0
        recall = retrieval_recall(
            model.score(images, texts, alpha=alpha), torch.arange(held_out.images)
        )
        metrics |= {f"{name}_{key}": value for key, value in recall.items()}
    return metrics | {"seconds": time.perf_counter() - started}


def draw_held_out(model: CAFT, held_out: HeldOutSet, count: int) -> list[bytes]:
    """PNG files of the set's first `count` images, each with its superpixels, its segments and the
    heat map of the first sentences of its caption.

    Raises:
        DataError: an image that cannot be decoded.
    """
    model.eval()
    pictures: list[bytes] = []
    for piece in held_out.pieces:
        if len(pictures) == count:
            break
        rows = read_piece(held_out.dataset, held_out.split, piece)
        for row in rows[: min(count - len(pictures), held_out.images - piece.first)]:
            sentences = evaluation_caption(row["captions"])[:MOST_SENTENCES]
            drawn = Image.fromarray(draw_panel(model, row["image"], sentences))
            stream = io.BytesIO()
            drawn.save(stream, "PNG")
            pictures.append(stream.getvalue())
    return pictures


def _encoded(
    model: CAFT, held_out: HeldOutSet, batch_size: int
) -> Iterator[tuple[ImageFeatures, TextFeatures]]:
    """Features of the set, batch by batch, in its order."""
    preprocess = CAFTPreprocess(model.config.image, model.config.image.preprocess)
    for piece in held_out.pieces:
        rows = read_piece(held_out.dataset, held_out.split, piece)[: held_out.images - piece.first]
        for first in range(0, len(rows), batch_size):
            batch = rows[first : first + batch_size]
            prepared = preprocess(batch)
            pixels = torch.from_numpy(prepared["images"]).to(model.device)  # (B, 3, S, S)
            superpixels = complete_superpixels(
                pixels, unpack_superpixels(prepared["superpixels"]), model.superpixel_labels
            )
            captions = [evaluation_caption(row["captions"]) for row in batch]
            texts = model.encode_text(model.tokenize_captions(captions))
            yield model.encode_image(pixels, superpixels), texts
