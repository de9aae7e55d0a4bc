"""Plain ViT on a regular grid of patches: the image encoder of the controls.
Stands where the fine-to-coarse encoder stands and gives the same kind of tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from caft.config import FlatImageConfig
from caft.dropout import Draws
from caft.image_encoder import NORM_EPS, ImageTokens, positions_at
from caft.layers import Block, Blocks, init_linear


class FlatImageEncoder(nn.Module):
    """Patch embedding, learned positions and one stack of blocks, as CLIP's ViT has them.

    Fine and coarse tokens are the same, the patches after the last block, and there is nothing to
    assign: a patch is its own segment.
    """

    def __init__(self, config: FlatImageConfig, activation: str = "gelu") -> None:
        super().__init__()
        self.patch_px = config.patch_px
        grid = config.image_size_px // config.patch_px
        self.patch_embedding = nn.Conv2d(
            3, config.width, config.patch_px, stride=config.patch_px, bias=False
        )
        self.positions = nn.Parameter(torch.empty(grid, grid, config.width))
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.norm_in = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.blocks = Blocks(
            Block(config.width, config.heads, config.mlp_ratio, NORM_EPS, activation)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        for embedding in (self.positions, self.cls_token):
            nn.init.normal_(embedding, std=config.width**-0.5)
        self.apply(init_linear)

    def forward(
        self, images: Tensor, superpixels: Tensor, draws: Draws | None = None
    ) -> ImageTokens:
        """`images` (B, 3, H, W) normalised, H and W multiples of the patch; superpixels are not
        read, and nothing is drawn."""
        patches = self.patch_embedding(images).permute(0, 2, 3, 1)  # (B, h, w, W)
        patches = patches + positions_at(self.positions, *patches.shape[1:3])
        cls = self.cls_token.expand(len(images), -1, -1)
        tokens = self.norm_in(torch.cat([cls, patches.flatten(1, 2)], dim=1))  # (B, 1 + hw, W)
        tokens = self.norm(self.blocks(tokens))
        return ImageTokens(tokens, tokens, [])

    def patch_labels(self, images: Tensor) -> Tensor:
        """The grid of patches as label maps (B, H, W), numbered row by row."""
        batch, _, height, width = images.shape
        row = torch.arange(height, device=images.device) // self.patch_px
        column = torch.arange(width, device=images.device) // self.patch_px
        labels = row[:, None] * (width // self.patch_px) + column
        return labels.expand(batch, -1, -1)
