"""Embeds a benchmark with Ray Data: tasks decode rows, actors that hold the model encode them.
Pieces of a dataset in; feature tensors and overlaps out, in the benchmark's order."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import ray
import torch
from torch import Tensor

import caft
from caft.captions import even_chunks
from caft.config import ModelConfig
from caft.errors import CAFTError, CheckpointError, DataError
from caft.model import ImageFeatures, TextFeatures
from caft.superpixels import stored_labels
from caft.tokenizer import load_tokenizer
from caft.transforms import eval_image, eval_labels
from pipelines import storage
from pipelines.cluster import connect
from pipelines.evaluate.benchmarks import (
    Benchmark,
    Piece,
    Regions,
    evaluation_caption,
    read_piece,
)
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.localisation import one_image, region_overlaps
from pipelines.progress import Progress
from pipelines.superpixels import (
    complete_superpixels,
    pack_superpixels,
    unpack_superpixels,
)


@dataclass
class Embedded:
    """A benchmark as the model sees it; text n belongs to image n."""

    images: ImageFeatures  # what `score` reads: whole (N, D) and fine (N, M, D)
    texts: TextFeatures
    overlaps: np.ndarray  # (R, 4) as `region_overlaps` gives them, of all regions


def embed_benchmark(config: EvaluateConfig, model: ModelConfig, benchmark: Benchmark) -> Embedded:
    """Run one benchmark through the actors.

    Raises:
        CheckpointError: the model gives features that are not numbers.
        DataError: an image that cannot be decoded.
    """
    connect()
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True  # so batches are the same in every run
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # or a DataError ends as text in a traceback
    pieces = [asdict(piece) for piece in benchmark.pieces]
    embedded = (
        ray.data.from_items(pieces, override_num_blocks=len(pieces))
        .map_batches(Preparer(benchmark.dataset.path, benchmark.split, model), batch_size=1)
        .map_batches(
            Embedder,
            fn_constructor_args=(config.checkpoint, benchmark.regions),
            fn_constructor_kwargs={"use_gpu": config.num_gpus_per_actor > 0},
            batch_size=config.batch_size,
            compute=ray.data.ActorPoolStrategy(size=config.concurrency),
            num_gpus=config.num_gpus_per_actor,
        )
    )
    progress = Progress(
        f"evaluate {benchmark.name}", len(benchmark.urls), "images", config.progress_every_s
    )
    batches = []
    try:
        for batch in embedded.iter_batches(batch_size=None):
            batches.append(batch)
            progress.update(len(batch["position"]))
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if not isinstance(cause, CAFTError):
            raise
        raise type(cause)(str(cause).splitlines()[0]) from None  # Ray adds lines of advice
    return _gather(batches, config.checkpoint, benchmark)


@dataclass(frozen=True)
class Preparer:
    """Reads and decodes one piece: the part of the work that needs no model weights."""

    dataset: str
    split: str
    model: ModelConfig

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Columns over the piece's n rows: position, url, image, superpixels and tokens."""
        cv2.setNumThreads(1)  # one task is one core; Ray runs several
        piece = Piece(**{name: values[0] for name, values in batch.items()})
        rows = read_piece(self.dataset, self.split, piece)
        size_px, text = self.model.image.image_size_px, self.model.text
        images = torch.stack([_pixels(row, size_px) for row in rows])  # (n, 3, S, S)
        stored = [self._stored(row) for row in rows]
        chunks = [
            chunk
            for row in rows
            for chunk in even_chunks(evaluation_caption(row["captions"]), text.chunks)
        ]
        tokens = load_tokenizer(text.tokenizer)(chunks, text.context_length)
        padded = torch.zeros(len(chunks), text.context_length, dtype=torch.int32)
        padded[:, : tokens.shape[1]] = tokens
        return {
            "position": piece.first + np.arange(len(rows)),
            "url": [row["url"] for row in rows],
            "images": images.numpy(),
            "superpixels": pack_superpixels(images, stored, self.model.image.superpixels),
            "tokens": padded.view(len(rows), text.chunks, -1).numpy(),
        }

    def _stored(self, row: dict[str, Any]) -> Tensor | None:
        config = self.model.image
        try:
            labels = stored_labels(row.get("superpixels"), config)
        except DataError as error:
            raise DataError(f"{row['url']}: {error}") from None
        return None if labels is None else eval_labels(labels, config.image_size_px)


class Embedder:
    """Ray Data actor that holds the model."""

    def __init__(self, checkpoint: str, regions: Regions, use_gpu: bool) -> None:
        self._model = caft.load_model(storage.local_copy(checkpoint))
        self._device = torch.device("cuda" if use_gpu else "cpu")
        self._model.to(self._device)
        self._regions = regions

    @torch.inference_mode()
    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Columns over the batch's rows: what `Embedded` is gathered from."""
        pixels = torch.from_numpy(batch["images"]).to(self._device)
        superpixels = complete_superpixels(
            pixels, unpack_superpixels(batch["superpixels"]), self._model.superpixel_labels
        )
        images = self._model.encode_image(pixels, superpixels)
        tokens = torch.from_numpy(batch["tokens"]).to(self._device).long()
        texts = self._model.encode_text(tokens)
        overlaps = [
            region_overlaps(self._model, one_image(images, n), self._regions.get(url, ()))
            for n, url in enumerate(batch["url"])
        ]
        return {
            "position": batch["position"],
            "whole": _numpy(images.whole),
            "fine": _numpy(images.fine if self._model.config.losses.parts else images.fine[:, :0]),
            "parts": _numpy(texts.parts),
            "text_whole": _numpy(texts.whole),
            "overlaps": [overlap.ravel().tolist() for overlap in overlaps],
        }


def _gather(
    batches: list[dict[str, np.ndarray]], checkpoint: str, benchmark: Benchmark
) -> Embedded:
    """Join batches in whatever order they came."""
    position = np.concatenate([batch["position"] for batch in batches])
    order = position.argsort()
    assert np.array_equal(position[order], np.arange(len(benchmark.urls))), "rows lost or doubled"

    def joined(name: str) -> Tensor:
        tensor = torch.from_numpy(np.concatenate([batch[name] for batch in batches])[order])
        bad = ~tensor.flatten(1).isfinite().all(dim=1)
        if bad.any():
            raise CheckpointError(
                f"{checkpoint}: gives features that are not numbers, first for "
                f"{benchmark.urls[int(bad.nonzero()[0])]}; training has diverged, use an earlier "
                "checkpoint"
            )
        return tensor

    overlaps = [np.reshape(row, (-1, 4)) for batch in batches for row in batch["overlaps"]]
    none = torch.empty(0)
    images = ImageFeatures(joined("whole"), joined("fine"), none, none, [], none)
    texts = TextFeatures(joined("parts"), joined("text_whole"))
    return Embedded(images, texts, np.concatenate(overlaps).astype(np.int64))


def _pixels(row: dict[str, Any], size_px: int) -> Tensor:
    try:
        return eval_image(row["image"], size_px)
    except DataError as error:
        raise DataError(f"{row['url']}: {error}") from None


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()
