"""Where in an image a sentence looks, and the image's hierarchy of segments, as pixel maps.
Reads what the model already computed: assignments between levels and pooling attention."""

from __future__ import annotations

import cv2
import numpy as np
import torch
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
        float32 (S, H, W): at each pixel the attention that the segments it belongs to receive.
    """
    size_px = model.config.image.image_size_px
    device = model.fine_projection.device
    features = model.encode_image(eval_image(image, size_px)[None].to(device))
    maps = heat_maps(model, features, encode_sentences(model, sentences))
    height, width = image.shape[:2]
    return np.stack(
        [cv2.resize(heat, (width, height), interpolation=cv2.INTER_NEAREST) for heat in maps]
    )


@torch.no_grad()
def encode_sentences(model: CAFT, sentences: list[str]) -> Tensor:
    """Projected part embeddings (S, D) of single sentences."""
    texts = model.part_text_encoder.pack(model.tokenize(sentences)[:, None])
    return model.part_text_encoder(texts.to(model.fine_projection.device)) @ model.part_projection


@torch.no_grad()
def heat_maps(model: CAFT, features: ImageFeatures, sentences: Tensor) -> np.ndarray:
    """Heat maps (S, H, W) at model resolution for the one image in `features`."""
    keys, _ = model.attention_pool.keys_values(features.fine[:1])
    queries = model.attention_pool.queries(sentences)[None]
    attention = model.attention_pool.attention(queries, keys)[0, :, :-1]  # (S, M): no zero slot
    per_superpixel = attention @ features.assignments[0][0].T  # (S, superpixels)
    return per_superpixel[:, features.superpixels[0]].float().cpu().numpy()


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
