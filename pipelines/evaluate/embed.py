"""Embeds a benchmark's images and captions with Ray Data actors, and localises its sentences.
Dataset rows in; feature tensors and overlaps out, in the dataset's order."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
import ray
import torch
from torch import Tensor

import caft
from caft.captions import even_chunks
from caft.errors import DataError
from caft.masks import decode_rle
from caft.metrics import binarise, centre_box, mask_iou
from caft.model import ImageFeatures, TextFeatures
from caft.transforms import decode_image, eval_image
from pipelines import storage
from pipelines.data.dataset import Dataset
from pipelines.evaluate.config import BenchmarkConfig, EvaluateConfig

KINDS = ("long", "short", "raw")  # the first of these that a row has is its caption


@dataclass
class Embedded:
    """A benchmark as the model sees it; rows are in the dataset's order."""

    urls: list[str]
    sentences: list[list[str]]
    images: ImageFeatures
    texts: TextFeatures
    iou: np.ndarray  # one per sentence with a mask
    centre_iou: np.ndarray  # the same sentences, looking at the centre box


def read_regions(path: str) -> dict[str, list[dict[str, Any]]]:
    """Masks per image: url -> [{text, size, counts}].

    Raises:
        DataError: the file is missing, or a line is not of that form.
    """
    if not storage.exists(path):
        raise DataError(f"{path}: no such regions file; check benchmarks.regions")
    regions = {}
    for number, line in enumerate(storage.read_bytes(path).decode("utf-8").splitlines(), 1):
        try:
            entry = json.loads(line)
            regions[entry["url"]] = entry["regions"]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path}: line {number} is no object with url and regions") from None
    return regions


def embed_benchmark(
    config: EvaluateConfig,
    benchmark: BenchmarkConfig,
    dataset: Dataset,
    regions: dict[str, list[dict[str, Any]]],
) -> Embedded:
    """Run the embedding actors over one benchmark.

    Raises:
        DataError: no row is in the benchmark's split.
    """
    fs, _ = storage.filesystem(dataset.path)
    paths = [storage.filesystem(storage.join(dataset.path, e.name))[1] for e in dataset.files]
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    rows = (
        ray.data.read_parquet(paths, filesystem=fs, columns=["url", "image", "captions", "split"])
        .filter(expr=pc.field("split") == benchmark.split)
        .map_batches(
            Embedder,
            fn_constructor_args=(config.checkpoint, ray.put(regions)),
            batch_size=config.batch_size,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=config.concurrency),
            num_gpus=config.num_gpus_per_actor,
        )
        .take_all()
    )
    if not rows:
        raise DataError(
            f"{benchmark.dataset}: no row has split '{benchmark.split}' "
            f"(benchmark '{benchmark.name}')"
        )

    def stacked(name: str) -> Tensor:
        return torch.from_numpy(np.stack([row[name] for row in rows]))

    overlaps = [pair for row in rows for pair in json.loads(row["overlaps"])]
    iou = np.asarray(overlaps, dtype=float).reshape(-1, 2)
    images = ImageFeatures(
        whole=stacked("image_whole"),
        fine=stacked("fine"),
        fine_cls=stacked("fine_cls"),
        coarse=stacked("coarse"),
        assignments=[],
        superpixels=torch.empty(0),
    )
    return Embedded(
        urls=[row["url"] for row in rows],
        sentences=[json.loads(row["sentences"]) for row in rows],
        images=images,
        texts=TextFeatures(stacked("parts"), stacked("text_whole")),
        iou=iou[:, 0],
        centre_iou=iou[:, 1],
    )


class Embedder:
    """Ray Data actor that holds the model."""

    def __init__(self, checkpoint: str, regions: Any) -> None:
        self._model = caft.load_model(storage.local_copy(checkpoint))
        if torch.cuda.is_available():
            self._model.cuda()
        self._regions = ray.get(regions)

    @torch.inference_mode()
    def __call__(self, batch: Any) -> dict[str, Any]:
        model, rows = self._model, batch.to_pylist()
        device = model.fine_projection.device
        size_px = model.config.image.image_size_px
        pixels = torch.stack([eval_image(row["image"], size_px) for row in rows])
        images = model.encode_image(pixels.to(device))
        sentences = [caption_of(row["captions"]) for row in rows]
        chunks = [c for s in sentences for c in even_chunks(s, model.config.text.chunks)]
        tokens = model.tokenize(chunks).view(len(rows), model.config.text.chunks, -1)
        texts = model.encode_text(tokens.to(device))
        return {
            "url": [row["url"] for row in rows],
            "sentences": [json.dumps(s) for s in sentences],
            "image_whole": _numpy(images.whole),
            "fine": _numpy(images.fine),
            "fine_cls": _numpy(images.fine_cls),
            "coarse": _numpy(images.coarse),
            "parts": _numpy(texts.parts),
            "text_whole": _numpy(texts.whole),
            "overlaps": [json.dumps(self._overlaps(row)) for row in rows],
        }

    def _overlaps(self, row: dict[str, Any]) -> list[tuple[float, float]]:
        """IoU of heat map and of centre box with the mask, per region of the image."""
        regions = self._regions.get(row["url"], [])
        if not regions:
            return []
        image = decode_image(row["image"])
        masks = np.stack([decode_rle(region) for region in regions])
        if masks.shape[1:] != image.shape[:2]:
            raise DataError(
                f"{row['url']}: masks are {masks.shape[1:]}, the stored image {image.shape[:2]}"
            )
        heat = caft.localize(self._model, image, [region["text"] for region in regions])
        model = mask_iou(binarise(heat), masks)
        centre = mask_iou(centre_box(*image.shape[:2])[None], masks)
        return list(zip(model.tolist(), centre.tolist(), strict=True))


def caption_of(captions: list[dict[str, Any]]) -> list[str]:
    """The sentences a row is evaluated with: its first long caption, else short, else raw."""
    for kind in KINDS:
        for caption in captions:
            if caption["kind"] == kind:
                return list(caption["sentences"])
    raise DataError("a dataset row without a caption; the data stage rejects such rows")


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()
