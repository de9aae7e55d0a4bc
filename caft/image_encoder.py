"""Fine-to-coarse image encoder: superpixel tokens through four groups of blocks, three pools.
Pixels in, fine and coarse segment tokens with their assignments out (model section 1)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caft.batch_norm import BlockBatchNorm
from caft.config import ImageConfig
from caft.dropout import Draws
from caft.errors import DataError
from caft.graph_pool import GraphPool
from caft.layers import Block, Blocks, init_linear
from caft.superpixels import cell_grid, pool_superpixels

NORM_EPS = 1e-6
POSITION_BASE = 10_000.0
CLS_STD = 0.02  # at the start


class ImageTokens(NamedTuple):
    """Normalised tokens of the two outputs, cls first, and the assignments between levels.

    Without part losses nothing reads the fine output: it is then the coarse one.
    """

    fine: Tensor  # (B, 1 + M1, W)
    coarse: Tensor  # (B, 1 + M3, W)
    assignments: list[Tensor]  # (B, S, M1), (B, M1, M2), (B, M2, M3); rows sum to 1


class ImageEncoder(nn.Module):
    """Superpixels -> M1 -> M2 -> M3 segments, with one cls token throughout."""

    positions: Tensor

    def __init__(
        self,
        config: ImageConfig,
        mask_dead: bool,
        with_fine: bool = True,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        self.mask_dead = mask_dead
        self.cell_px = config.superpixels.cell_px
        self.fewest_superpixels = config.segments[0]
        grid = config.image_size_px // config.stem_stride
        self.stem = _stem(config.stem_widths, config.stem_strides, config.width)
        self.register_buffer("positions", sincos_positions(grid, grid, config.width))
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.groups = nn.ModuleList(
            Blocks(
                Block(config.width, config.heads, config.mlp_ratio, NORM_EPS, activation)
                for _ in range(depth)
            )
            for depth in config.group_depths
        )
        self.pools = nn.ModuleList(
            GraphPool(
                config.width, config.pool_attn_heads, config.mlp_ratio, count, config.pool_dropout
            )
            for count in config.segments
        )
        self.norm_fine = nn.LayerNorm(config.width, eps=NORM_EPS) if with_fine else None
        self.norm_coarse = nn.LayerNorm(config.width, eps=NORM_EPS)
        nn.init.trunc_normal_(self.cls_token, std=CLS_STD)
        self.apply(init_linear)

    def forward(
        self, images: Tensor, superpixels: Tensor, draws: Draws | None = None
    ) -> ImageTokens:
        """`images` (B, 3, H, W) normalised; `superpixels` (B, H, W) labels at full resolution,
        below the number of cells in an image of that size; `draws` for dropout in training.

        Raises:
            DataError: the image has fewer superpixels than the first pool makes segments.
        """
        tokens, live = self._superpixel_tokens(images, superpixels)  # (B, S, W), (B, S)
        live_now: Tensor | None = live
        cls = self.cls_token.expand(tokens.shape[0], -1, -1)
        assignments: list[Tensor] = []
        fine = None
        for level, group in enumerate(self.groups):
            joined = torch.cat([cls, tokens], dim=1)
            mask = None
            if self.mask_dead and live_now is not None:
                mask = F.pad(live_now, (1, 0), value=True)[:, None, None]  # cls is always there
            joined = group(joined, mask)
            cls, tokens = joined[:, :1], joined[:, 1:]
            if level == 1 and self.norm_fine is not None:
                fine = self.norm_fine(joined)
            if level < len(self.pools):
                own_draws = None if draws is None else draws.stream(level)
                cls, tokens, assignment = self.pools[level](
                    cls, tokens, live_now, not self.mask_dead, own_draws
                )
                assignments.append(assignment)
                live_now = None  # every segment of a pool has a live seed
        coarse = self.norm_coarse(torch.cat([cls, tokens], dim=1))
        return ImageTokens(coarse if fine is None else fine, coarse, assignments)

    def _superpixel_tokens(self, images: Tensor, superpixels: Tensor) -> tuple[Tensor, Tensor]:
        """Stem features with positions, averaged in each superpixel: (B, S, W), live (B, S).

        The stem ends in a 1x1 convolution. It is linear, so it follows the average here and runs
        on S tokens and not on every cell.
        """
        images = images.contiguous(memory_format=torch.channels_last)
        features = self.stem[:-1](images).permute(0, 2, 3, 1)  # (B, h, w, W')
        positions = positions_at(self.positions, *features.shape[1:3])
        positions = positions.expand(len(images), -1, -1, -1)
        pooled, live = pool_superpixels(
            torch.cat([features, positions.to(features.dtype)], dim=-1),
            superpixels,
            self._superpixel_count(*superpixels.shape[1:]),
        )
        pixels, places = pooled.split([features.shape[-1], positions.shape[-1]], dim=-1)
        last = self.stem[-1]
        assert isinstance(last, nn.Conv2d)
        return F.linear(pixels, last.weight.flatten(1), last.bias) + places, live

    def _superpixel_count(self, height: int, width: int) -> int:
        rows, columns = cell_grid(height, width, self.cell_px)
        if rows * columns < self.fewest_superpixels:
            raise DataError(
                f"image of {width} x {height} px: its {rows * columns} superpixels are fewer than "
                f"the model's {self.fewest_superpixels} segments; enlarge it"
            )
        return rows * columns


def positions_at(positions: Tensor, height: int, width: int) -> Tensor:
    """An (h, w, W) grid of positions, resized bicubically for another image size."""
    if positions.shape[:2] == (height, width):
        return positions
    resized = F.interpolate(positions.permute(2, 0, 1)[None], size=(height, width), mode="bicubic")
    return resized[0].permute(1, 2, 0)


def sincos_positions(height: int, width: int, dim: int) -> Tensor:
    """Fixed 2-D sine-cosine positions (h, w, dim): first half from y, second half from x."""
    frequency = POSITION_BASE ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    parts = [
        wave(axis[..., None] * frequency) for axis in (y, x) for wave in (torch.sin, torch.cos)
    ]
    return torch.cat(parts, dim=-1).float()


def _stem(widths: tuple[int, ...], strides: tuple[int, ...], width_out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    width_in = 3
    for width, stride in zip(widths, strides, strict=True):
        layers += [
            nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False),
            BlockBatchNorm(width),
            nn.ReLU(inplace=True),
        ]
        width_in = width
    layers.append(nn.Conv2d(width_in, width_out, 1))
    return nn.Sequential(*layers)
