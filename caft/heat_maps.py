"""Where in an image a sentence looks, and the image's hierarchy of segments, as pixel maps.
Reads what the model already computed: assignments between levels and pooling attention."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from caft.model import CAFT, ImageFeatures
from caft.transforms import eval_image


@torch.no_grad()
def localize(model: CAFT, image: np.ndarray, sentences: list[str]) -> np.ndarray:
    """Heat maps of sentences on one image.

    Args:
        image: uint8 RGB (H, W, 3).
        sentences: S sentences; each is read as one part.

    Returns:
        float32 (S, H, W): at each pixel the attention that the segments it belongs to receive; of
        a model without part losses, which has no such attention, their cosine with the sentence.
    """
    maps = heat_maps(model, encode_one(model, image), encode_sentences(model, sentences))
    return np.stack([at_size_of(image, heat) for heat in maps])


@torch.no_grad()
def hierarchy(model: CAFT, image: np.ndarray) -> list[np.ndarray]:
    """The image cut into segments, from fine to coarse: 64, 32 and 16 of them in CAFT-B.

    Args:
        image: uint8 RGB (H, W, 3).

    Returns:
        int32 label maps (H, W), one per level, nested: all pixels of a segment lie in the same
        coarser one. A flat model has no level.
    """
    levels = segment_hierarchy(encode_one(model, image))
    return [at_size_of(image, labels[0].int().cpu().numpy()) for labels in levels]


@torch.no_grad()
def encode_one(model: CAFT, image: np.ndarray) -> ImageFeatures:
    """Features of one uint8 RGB image (H, W, 3), resized as for evaluation."""
    pixels = eval_image(image, model.config.image.image_size_px)
    return model.encode_image(pixels[None].to(model.device))


@torch.no_grad()
def encode_sentences(model: CAFT, sentences: list[str]) -> Tensor:
    """Projected embeddings (S, D) of single sentences: as parts, or as whole captions where the
    model has no part losses."""
    tokens = model.tokenize(sentences)[:, None]  # (S, 1, T)
    if not model.config.losses.parts:
        tokens = tokens.expand(-1, model.config.text.chunks, -1)
    texts = model.part_text_encoder.pack(tokens).to(model.device)
    if model.config.losses.parts:
        return model.part_text_encoder(texts) @ model.part_projection
    return model.encode_text(texts).whole


@torch.no_grad()
def heat_maps(model: CAFT, features: ImageFeatures, sentences: Tensor) -> np.ndarray:
    """Heat maps (S, H, W) at model resolution for the one image in `features`."""
    if model.config.losses.parts:
        keys, _ = model.attention_pool.keys_values(features.fine[:1])
        queries = model.attention_pool.queries(sentences)[None]
        heat = model.attention_pool.attention(queries, keys)[0, :, :-1]  # (S, M): no zero slot
        levels = features.assignments[:1]
    else:
        heat = F.normalize(sentences, dim=-1) @ F.normalize(features.coarse[0], dim=-1).T
        levels = features.assignments
    for assignment in reversed(levels):
        heat = heat @ assignment[0].T  # at last (S, superpixels)
    return heat[:, features.superpixels[0]].float().cpu().numpy()


@torch.no_grad()
def segment_hierarchy(features: ImageFeatures) -> list[Tensor]:
    """Nested label maps (B, H, W), one per level: a segment lies in exactly one coarser one."""
    labels = features.superpixels  # (B, H, W)
    levels = []
    for assignment in features.assignments:
        parent = assignment.argmax(dim=-1)  # (B, finer)
        labels = parent.gather(1, labels.flatten(1)).view_as(labels)
        levels.append(labels)
    return levels


def at_size_of(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A map (h, w) over the image at the image's own size (H, W), without new values."""
    height, width = image.shape[:2]
    return cv2.resize(values, (width, height), interpolation=cv2.INTER_NEAREST)
