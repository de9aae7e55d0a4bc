"""Draws what a CAFT model sees in one image: superpixels, segments, and where sentences look.
For examples.py; pictures become data URIs here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caft.config import PictureRule
from caft.heat_maps import (
    encode_sentences,
    heat_maps,
    heat_on,
    labels_on,
    segment_hierarchy,
)
from caft.model import CAFT, ImageFeatures
from caft.pictures import data_url, draw_borders, draw_heat, draw_hierarchy, to_canvas
from caft.preprocessing import eval_image
from pipelines.evaluate.benchmark import Region
from pipelines.evaluate.measures import heat_overlap


def about_model(model: CAFT) -> str:
    """A sentence on a model's size and segments."""
    image = model.config.image
    parameters = sum(parameter.numel() for parameter in model.parameters())
    flat = image.encoder == "flat"
    levels = ", ".join(map(str, image.segments))
    pooled = "" if flat else f" pooled to {levels} segments"
    return (
        f"{parameters / 1e6:.1f} million parameters, images of {image.image_size_px} × "
        f"{image.image_size_px} pixels, {image.superpixel_count} {cut_name(model)}{pooled}."
    )


def about_heat(model: CAFT) -> str:
    """A sentence on what a heat map shows."""
    if model.config.losses.parts:
        pieces = "patches" if model.config.image.encoder == "flat" else "finest segments"
        return f"Each heat map is the attention that one sentence gives to the {pieces}."
    pieces = "patches" if model.config.image.encoder == "flat" else "coarsest segments"
    return f"Each heat map is the cosine of one sentence with each of the {pieces}."


def cut_name(model: CAFT) -> str:
    """What the model cuts an image into first."""
    return "patches" if model.config.image.encoder == "flat" else "superpixels"


@torch.inference_mode()
def anatomy(
    model: CAFT,
    image: np.ndarray,
    regions: Sequence[Region],
    sentences: Sequence[str],
    most: int,
    rule: PictureRule,
) -> dict[str, Any]:
    """One image with its superpixels, its hierarchy of segments and a heat map per sentence; what
    the model was not shown is dark.

    Args:
        image: uint8 RGB (H, W, 3).
        regions: sentences with masks, which come first.
        sentences: of the image's captions.
        most: heat maps drawn.
        rule: by which the model is shown the image.

    Returns:
        JSON: `image`, `superpixels` and `levels` as pictures, and `heats` with `text`, `src` and
        `iou`, a fraction, None without a mask; `sentences` is how many there were to draw.
    """
    features = model.encode_image(eval_image(image, model.config.image.image_size_px, rule)[None])
    canvas = to_canvas(image)

    def on_canvas(labels: Tensor) -> np.ndarray:
        return labels_on(canvas, labels[0].numpy(), rule)

    superpixels = on_canvas(features.superpixels)
    segments = segment_hierarchy(features)
    levels = [on_canvas(labels) for labels in segments]
    outlines = superpixels if not levels else levels[0 if model.config.losses.parts else -1]
    texts = _texts(regions, sentences)
    shown, heats = texts[:most], []
    for (text, mask), heat in zip(shown, _heat_maps(model, features, shown), strict=True):
        iou = None
        if mask is not None:
            intersection, union = heat_overlap(heat, mask, rule)
            iou = float(intersection / max(1, union))
        drawn = draw_heat(canvas, heat_on(canvas, heat, rule), mask, outlines)
        heats.append({"text": text, "src": data_url(drawn), "iou": iou})
    return {
        "image": data_url(canvas),
        "superpixels": {
            "src": data_url(draw_borders(canvas, superpixels)),
            "text": f"{model.config.image.superpixel_count} {cut_name(model)}",
        },
        "levels": [
            {"src": data_url(picture), "used": len(labels.unique()), "most": most_segments}
            for picture, labels, most_segments in zip(
                draw_hierarchy(canvas, levels), segments, model.config.image.segments, strict=True
            )
        ],
        "heats": heats,
        "sentences": len(texts),
    }


def _heat_maps(
    model: CAFT, features: ImageFeatures, texts: Sequence[tuple[str, np.ndarray | None]]
) -> Sequence[np.ndarray]:
    """(H, W) of each text; of a benchmark of classes alone there is none."""
    if not texts:
        return []
    encoded = encode_sentences(model, [text for text, _ in texts])
    return list(heat_maps(model, features, encoded))


def _texts(
    regions: Sequence[Region], sentences: Sequence[str]
) -> list[tuple[str, np.ndarray | None]]:
    """What gets a heat map: sentences with a mask, then the captions' other sentences, each
    once."""
    masks: dict[str, np.ndarray | None] = {region.text: region.mask for region in regions}
    rest = [sentence for sentence in dict.fromkeys(sentences) if sentence not in masks]
    return [*masks.items(), *((sentence, None) for sentence in rest)]
