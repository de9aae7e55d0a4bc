"""Where in an image a sentence looks, and the image's hierarchy of segments, as pixel maps.
Reads what the model already computed: assignments between levels and pooling attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from caft.config import PictureRule
from caft.inputs import Texts, picture_pixels, split_batch, text_list
from caft.model import CAFT, ImageFeatures
from caft.preprocessing import Picture, to_picture

UNSEEN = -1  # the segment of pixels that the model was not shown


@overload
def localize(  # type: ignore[overload-overlap]
    model: CAFT, image: Picture, sentences: Texts
) -> np.ndarray: ...
@overload
def localize(model: CAFT, image: Sequence[Picture], sentences: Texts) -> list[np.ndarray]: ...
@torch.no_grad()
def localize(model: CAFT, image: Any, sentences: Texts) -> Any:
    """Heat maps of sentences on one image.

    Args:
        image: path, encoded bytes, Pillow image, uint8 array (H, W, 3), or tensor (3, H, W) of
            uint8 or normalised floats. A list or stack of images gives a list of results.
        sentences: S sentences; each is read as one part. A `str` is one sentence.

    Returns:
        float32 (S, H, W), in pixels of the image given: at each pixel the attention that the
        segments it belongs to receive; of a model without part losses, which has no such
        attention, their cosine with the sentence. NaN where the model saw nothing, which a model
        of `image.preprocess: crop` does of all that lies outside the central square;
        `~np.isnan(heat)` is the mask of what it saw.

    Raises:
        DataError: nothing that can be read as a picture, or floats that are no normalised pixels.
    """
    several = split_batch(image)
    if several is not None:
        return [localize(model, one, sentences) for one in several]
    rule = model.config.image.preprocess
    pixels, texts = picture_pixels(image, rule), text_list(sentences)
    if not texts:
        return np.zeros((0, *pixels.shape[:2]), np.float32)
    maps = heat_maps(model, encode_one(model, pixels), encode_sentences(model, texts))
    return np.stack([heat_on(pixels, heat, rule) for heat in maps])


@overload
def hierarchy(  # type: ignore[overload-overlap]
    model: CAFT, image: Picture
) -> list[np.ndarray]: ...
@overload
def hierarchy(model: CAFT, image: Sequence[Picture]) -> list[list[np.ndarray]]: ...
@torch.no_grad()
def hierarchy(model: CAFT, image: Any) -> Any:
    """The image cut into segments, from fine to coarse: 64, 32 and 16 of them in CAFT-B.

    Args:
        image: as for `localize`.

    Returns:
        int32 label maps (H, W), one per level, nested: all pixels of a segment lie in the same
        coarser one. -1 where the model saw nothing, as in `localize`. A flat model has no level.

    Raises:
        DataError: nothing that can be read as a picture, or floats that are no normalised pixels.
    """
    several = split_batch(image)
    if several is not None:
        return [hierarchy(model, one) for one in several]
    rule = model.config.image.preprocess
    pixels = picture_pixels(image, rule)
    levels = segment_hierarchy(encode_one(model, pixels))
    return [labels_on(pixels, labels[0].int().cpu().numpy(), rule) for labels in levels]


@torch.no_grad()
def encode_one(model: CAFT, image: Picture) -> ImageFeatures:
    """Features of one picture, shown to the model as in evaluation."""
    return model.encode_image(model.preprocess(image)[None].to(model.device))


def heat_on(picture: np.ndarray, heat: np.ndarray, rule: PictureRule) -> np.ndarray:
    """A heat map (h, w) at model resolution over the picture or mask (H, W, ...) it is about:
    (H, W), NaN where the model, which was shown the picture by `rule`, saw nothing."""
    return to_picture(heat, picture.shape[0], picture.shape[1], rule, np.nan)


def labels_on(picture: np.ndarray, labels: np.ndarray, rule: PictureRule) -> np.ndarray:
    """As `heat_on` for a label map, with -1 where the model saw nothing."""
    return to_picture(labels.astype(np.int32), picture.shape[0], picture.shape[1], rule, UNSEEN)


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
        queries = model.attention_pool.scoring_queries(sentences)[None]
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
