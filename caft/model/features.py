"""What the model knows of images and of captions, as its encoders return it.
Between the encoders, and losses, scores and heat maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch.export
from torch import Tensor


@dataclass
class ImageFeatures:
    """What the model knows of B images; embeddings are projected and not L2-normalised.

    A model without part losses has coarse embeddings alone, one without a whole loss fine ones
    alone; they then stand for the others too. A flat encoder's segments are its patches.
    """

    whole: Tensor  # (B, D): coarse cls
    fine: Tensor  # (B, M, D): fine segments
    fine_cls: Tensor  # (B, D)
    coarse: Tensor  # (B, M3, D): coarse segments
    assignments: list[Tensor]  # per level, soft: (B, S, M1), (B, M1, M2), (B, M2, M3); flat: none
    superpixels: Tensor  # (B, H, W) label map


@dataclass
class TextFeatures:
    """What the model knows of B captions; embeddings are projected and not L2-normalised.

    Without part losses the whole caption is the only part; without a whole loss the mean of the
    chunks is the whole.
    """

    parts: Tensor  # (B, K, D): sub-captions; the first `chunks` of them make the whole
    whole: Tensor  # (B, D)


# So that graphs which return features can be exported.
for _features in (ImageFeatures, TextFeatures):
    torch.export.register_dataclass(_features)
FeaturesT = TypeVar("FeaturesT", ImageFeatures, TextFeatures)
