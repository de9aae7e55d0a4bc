"""Superpixels: label maps that cut an image into about one segment per cell.
They are the tokens of the image encoder's first group, and the pixels of its segmentation."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from caft.config import SuperpixelConfig
from caft.errors import ConfigError
from caft.graph_pool import take_tokens

SEEDS_LEVELS, SEEDS_PRIOR, SEEDS_BINS = 1, 2, 15  # as CAST uses them


def superpixel_labels(images: Tensor, config: SuperpixelConfig) -> Tensor:
    """Label maps (B, H, W) int64 of uint8 RGB images (B, 3, H, W), labels 0 .. cells - 1.

    Raises:
        ConfigError: SEEDS is asked for and the installed OpenCV has no `ximgproc` module.
    """
    batch, _, height, width = images.shape
    rows, columns = height // config.cell_px, width // config.cell_px
    if config.method == "grid":
        labels = _grid_labels(height, width, rows, columns).expand(batch, -1, -1)
    else:
        pixels = images.permute(0, 2, 3, 1).cpu().numpy()
        maps = [seeds_labels(image, rows * columns, config.iterations) for image in pixels]
        labels = torch.from_numpy(np.stack(maps)).long()
    return labels.to(images.device)


def seeds_labels(image: np.ndarray, count: int, iterations: int) -> np.ndarray:
    """OpenCV SEEDS on one uint8 RGB image (H, W, 3): an int32 label map (H, W)."""
    if not hasattr(cv2, "ximgproc"):
        raise ConfigError(
            "superpixels.method 'seeds' needs OpenCV's contrib modules: "
            "pip install --force-reinstall --no-deps opencv-contrib-python-headless"
        )
    height, width = image.shape[:2]
    seeds = cv2.ximgproc.createSuperpixelSEEDS(
        width, height, 3, count, SEEDS_LEVELS, SEEDS_PRIOR, SEEDS_BINS
    )
    seeds.iterate(cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2Lab), iterations)
    return seeds.getLabels()


def pool_superpixels(features: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean feature of each superpixel.

    Args:
        features: (B, h, w, D) on the stem's grid.
        labels: (B, H, W) full-resolution label map, values below `count`.

    Returns:
        tokens (B, count, D) and live (B, count). A superpixel without a cell on the grid is not
        live and takes the token of the nearest live one (by centroid distance in pixels).
    """
    batch, grid_h, grid_w, width = features.shape
    cells = F.interpolate(labels[:, None].float(), size=(grid_h, grid_w), mode="nearest")
    index = torch.arange(count, device=labels.device)
    members = (cells.view(batch, 1, -1) == index[None, :, None]).to(features.dtype)  # (B, S, hw)
    size = members.sum(dim=-1, keepdim=True)
    tokens = torch.bmm(members, features.reshape(batch, -1, width)) / size.clamp(min=1)
    live = size.squeeze(-1) > 0
    return take_tokens(tokens, nearest_live(labels, live)), live


@torch.no_grad()
def nearest_live(labels: Tensor, live: Tensor) -> Tensor:
    """Index (B, S) of each superpixel's nearest live one; a live one is its own nearest."""
    batch, height, width = labels.shape
    count = live.shape[1]
    flat = labels.reshape(batch, -1)
    y = torch.arange(height, device=labels.device, dtype=torch.float32)
    x = torch.arange(width, device=labels.device, dtype=torch.float32)
    ones = torch.ones(height, width, device=labels.device)
    moments = torch.stack([ones, y[:, None] * ones, x[None, :] * ones])  # (3, H, W)
    moments = moments.view(3, 1, -1).expand(3, batch, -1)
    sums = torch.zeros(3, batch, count, device=labels.device)
    sums.scatter_add_(2, flat[None].expand(3, -1, -1), moments)
    centroid = (sums[1:] / sums[0].clamp(min=1)).permute(1, 2, 0)  # (B, S, 2)
    distance = torch.cdist(centroid, centroid, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distance.masked_fill(~live[:, None, :], torch.inf).argmin(dim=-1)
    return torch.where(live, torch.arange(count, device=labels.device), nearest)


def _grid_labels(height: int, width: int, rows: int, columns: int) -> Tensor:
    row = torch.arange(height) * rows // height
    column = torch.arange(width) * columns // width
    return row[:, None] * columns + column[None, :]
