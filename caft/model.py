"""CAFT: an image encoder from fine to coarse, a text encoder from part to whole, one score.
The whole model in the order data meets it; the losses are in losses.py, training elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caft.attention_pool import AttentionPool
from caft.config import ModelConfig, load_model_config
from caft.image_encoder import ImageEncoder
from caft.layers import Blocks, projection
from caft.packing import PackedTexts
from caft.sfcn import SFCN, load_sfcn_weights, read_sfcn_weights
from caft.superpixels import complete_labels
from caft.text_encoder import PartTextEncoder, WholeTextEncoder
from caft.tokenizer import Tokenizer, load_tokenizer
from caft.transforms import normalise

INIT_LOG_SCALE = math.log(1 / 0.07)
MAX_PART_LOG_SCALE = math.log(100)
MAX_WHOLE_LOG_SCALE = 4.0


@dataclass
class ImageFeatures:
    """What the model knows of B images; embeddings are projected and not L2-normalised."""

    whole: Tensor  # (B, D): coarse cls
    fine: Tensor  # (B, M, D): fine segments
    fine_cls: Tensor  # (B, D)
    coarse: Tensor  # (B, M3, D): coarse segments
    assignments: list[Tensor]  # per level, soft: (B, S, M1), (B, M1, M2), (B, M2, M3)
    superpixels: Tensor  # (B, H, W) label map


@dataclass
class TextFeatures:
    """What the model knows of B captions; embeddings are projected and not L2-normalised."""

    parts: Tensor  # (B, K, D): sub-captions; the first `chunks` of them make the whole
    whole: Tensor  # (B, D)


class CAFT(nn.Module):
    """Contrastive model of images and long captions ("Aligning Forest and Trees")."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = ImageEncoder(config.image, config.mask_dead_superpixels)
        self.part_text_encoder = PartTextEncoder(config.text)
        self.whole_text_encoder = WholeTextEncoder(config.text)
        self.fine_projection = projection(config.image.width, config.embed_dim)
        self.coarse_projection = projection(config.image.width, config.embed_dim)
        self.part_projection = projection(config.text.width, config.embed_dim)
        self.whole_projection = projection(config.text.width, config.embed_dim)
        self.attention_pool = AttentionPool(config.embed_dim, config.pool_heads)
        # Of shape (1,): DeepSpeed cannot broadcast parameters without a dimension.
        self.part_log_scale = nn.Parameter(torch.tensor([INIT_LOG_SCALE]))
        self.part_bias = nn.Parameter(torch.tensor([config.init_logit_bias]))
        self.whole_log_scale = nn.Parameter(torch.tensor([INIT_LOG_SCALE]))
        self.whole_bias = nn.Parameter(torch.tensor([config.init_logit_bias]))
        # Frozen: its weights come with a checkpoint or from create_model. It is made last, so that
        # the others start the same with and without it.
        self.superpixel_network = (
            SFCN(frozen=True) if config.image.superpixels.method == "sfcn" else None
        )

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.config.text.tokenizer)

    def tokenize(self, texts: list[str]) -> Tensor:
        """Token ids (N, T) of N texts, padded to the longest and cut at the context length."""
        return self.tokenizer(texts, self.config.text.context_length)

    def encode_image(self, images: Tensor, superpixels: Tensor | None = None) -> ImageFeatures:
        """Encode images.

        Args:
            images: (B, 3, H, W), uint8 RGB or float normalised by `caft.transforms.normalise`.
            superpixels: (B, H, W) integer labels, below the number of cells in such an image.
                None, or rows of -1: computed as the configuration says.

        Raises:
            DataError: the images have fewer superpixels than the model makes segments of them.
        """
        config = self.config.image.superpixels
        superpixels = complete_labels(images, superpixels, config, self.superpixel_network)
        if images.dtype == torch.uint8:
            images = normalise(images)
        tokens = self.image_encoder(images, superpixels)
        fine = tokens.fine @ self.fine_projection
        coarse = tokens.coarse @ self.coarse_projection
        return ImageFeatures(
            whole=coarse[:, 0],
            fine=fine[:, 1:],
            fine_cls=fine[:, 0],
            coarse=coarse[:, 1:],
            assignments=tokens.assignments,
            superpixels=superpixels,
        )

    def encode_text(self, tokens: Tensor | PackedTexts) -> TextFeatures:
        """Encode captions of K sub-captions each, K >= configured chunks.

        Args:
            tokens: ids (B, K, T), or the same packed by `part_text_encoder.pack`: a training
                loop packs on the host, so that the device never waits for lengths.
        """
        texts = tokens if isinstance(tokens, PackedTexts) else self.part_text_encoder.pack(tokens)
        embedded = self.part_text_encoder(texts).view(texts.captions, texts.parts, -1)  # (B, K, W)
        whole = self.whole_text_encoder(embedded[:, : self.config.text.chunks])
        return TextFeatures(embedded @ self.part_projection, whole @ self.whole_projection)

    def forward(
        self, images: Tensor, tokens: Tensor | PackedTexts, superpixels: Tensor | None = None
    ) -> tuple[ImageFeatures, TextFeatures]:
        return self.encode_image(images, superpixels), self.encode_text(tokens)

    def whole_scores(self, images: ImageFeatures, texts: TextFeatures) -> Tensor:
        """Whole logits (N_images, N_texts)."""
        cosine = F.normalize(images.whole, dim=-1) @ F.normalize(texts.whole, dim=-1).T
        return self.whole_log_scale.exp() * cosine + self.whole_bias

    def part_scores(self, images: ImageFeatures, texts: TextFeatures) -> Tensor:
        """Part logits (N_images, N_texts): the mean over each text's chunks."""
        parts = texts.parts[:, : self.config.text.chunks].float()  # (T, C, D)
        queries = self.attention_pool.queries(parts).flatten(0, 1)[None]  # (1, T*C, D)
        keys, values = self.attention_pool.keys_values(images.fine)
        target = F.normalize(parts, dim=-1).flatten(0, 1)  # (T*C, D)
        rows = []
        for n in range(len(images.fine)):  # one image at a time: (1, T*C, D) and no more
            pooled = self.attention_pool(queries, keys[n : n + 1], values[n : n + 1])[0]
            rows.append((F.normalize(pooled, dim=-1) * target).sum(dim=-1))
        cosine = torch.stack(rows).view(len(rows), *parts.shape[:2])  # (I, T, C)
        return self.part_log_scale.exp() * cosine.mean(dim=-1) + self.part_bias

    @torch.no_grad()
    def score(
        self,
        image_features: ImageFeatures,
        text_features: TextFeatures,
        alpha: float = 0.3,
        top_k: int | None = None,
    ) -> Tensor:
        """Score (N_images, N_texts) = (1 - alpha) x whole logit + alpha x mean part logit.

        With `top_k`, each image keeps its `top_k` best texts by whole score; the others get -inf.
        """
        whole = self.whole_scores(image_features, text_features)
        scores = whole
        if alpha:
            part = self.part_scores(image_features, text_features)
            scores = (1 - alpha) * whole + alpha * part
        if top_k is not None:
            best = whole.topk(min(top_k, whole.shape[1]), dim=1).indices
            keep = torch.zeros_like(whole, dtype=torch.bool).scatter_(1, best, True)
            scores = scores.masked_fill(~keep, -torch.inf)
        return scores

    def recompute_activations(self, on: bool = True) -> None:
        """Trade time for memory: every block keeps its input alone and runs again in backward."""
        for module in self.modules():
            if isinstance(module, Blocks):
                module.recompute = on

    @torch.no_grad()
    def clamp_scales_(self) -> None:
        """Hold both log-scales in their ranges; called after every optimiser step."""
        self.part_log_scale.clamp_(0, MAX_PART_LOG_SCALE)
        self.whole_log_scale.clamp_(0, MAX_WHOLE_LOG_SCALE)


def create_model(name_or_config: str | Path | Mapping[str, Any] | ModelConfig) -> CAFT:
    """A freshly initialised model for a recipe name (`caft_b`), a YAML file or a configuration.

    A superpixel network comes fitted, with the weights that the configuration names.

    Raises:
        ConfigError: no such recipe, a configuration that does not fit the schema, or no weights
            for the superpixel network.
    """
    config = load_model_config(name_or_config)
    model = CAFT(config)
    if model.superpixel_network is not None:
        weights = read_sfcn_weights(config.image.superpixels)
        load_sfcn_weights(model.superpixel_network, weights, config.image.superpixels.weights)
    return model


def detach(features: ImageFeatures) -> ImageFeatures:
    """The same features on the CPU and without gradient history."""
    return replace(
        features,
        whole=features.whole.detach().cpu(),
        fine=features.fine.detach().cpu(),
        fine_cls=features.fine_cls.detach().cpu(),
        coarse=features.coarse.detach().cpu(),
        assignments=[a.detach().cpu() for a in features.assignments],
        superpixels=features.superpixels.cpu(),
    )
