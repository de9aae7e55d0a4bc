"""A flat CLIP of about caft_xs's size: the same stem and blocks, no segments and no chunks.
The other side of learn_scenes.py; reads a whole caption at once and pools nothing on the way."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caft.config import ImageConfig, ModelConfig, TextConfig
from caft.image_encoder import NORM_EPS, ImageEncoder
from caft.layers import Block, init_linear, projection
from caft.model import INIT_LOG_SCALE
from caft.text_encoder import PartTextEncoder
from caft.tokenizer import load_tokenizer
from caft.transforms import normalise

IMAGE_BLOCKS = 7
TEXT_LAYERS = 4
CONTEXT = 256  # eight sentences fit
CELL = 2  # stem cells per token side: 36 tokens, as many as caft_xs has superpixels


class FlatCLIP(nn.Module):
    """Image tokens on a regular grid, one text Transformer, one sigmoid loss on pairs."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        image = ImageConfig(**config.image.model_dump())
        template = ImageEncoder(image, mask_dead=False)
        self.stem, self.positions = template.stem, template.positions
        self.cls_token = nn.Parameter(torch.zeros(1, 1, image.width))
        self.blocks = nn.ModuleList(
            Block(image.width, image.heads, image.mlp_ratio, NORM_EPS) for _ in range(IMAGE_BLOCKS)
        )
        self.norm = nn.LayerNorm(image.width, eps=NORM_EPS)
        self.blocks.apply(init_linear)
        text = config.text.model_dump() | {"context_length": CONTEXT, "layers": TEXT_LAYERS}
        self.text_encoder = PartTextEncoder(TextConfig(**text))
        self.image_projection = projection(image.width, config.embed_dim)
        self.text_projection = projection(config.text.width, config.embed_dim)
        self.log_scale = nn.Parameter(torch.tensor([INIT_LOG_SCALE]))
        self.bias = nn.Parameter(torch.tensor([config.init_logit_bias]))
        self._tokenizer = load_tokenizer(config.text.tokenizer)

    def encode_image(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) to normalised embeddings (B, D)."""
        features = self.stem(normalise(images)) + self.positions.permute(2, 0, 1)
        tokens = F.avg_pool2d(features, CELL).flatten(2).transpose(1, 2)  # (B, 36, W)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return F.normalize(self.norm(tokens[:, 0]) @ self.image_projection, dim=-1)

    def encode_text(self, captions: list[str]) -> Tensor:
        """Whole captions to normalised embeddings (B, D)."""
        tokens = self._tokenizer(captions, CONTEXT)
        return F.normalize(self.text_encoder(tokens) @ self.text_projection, dim=-1)

    def scores(self, images: Tensor, texts: Tensor) -> Tensor:
        return self.log_scale.exp() * images @ texts.T + self.bias

    def loss(self, images: Tensor, captions: list[str]) -> Tensor:
        scores = self.scores(self.encode_image(images), self.encode_text(captions))
        positive = torch.eye(len(images))
        loss = F.binary_cross_entropy_with_logits(scores, positive, reduction="sum")
        return loss / len(images)
