"""From features on the stem's grid to one token per superpixel.
First step of the image encoder after its stem; knows nothing of how the labels were made."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from caft.graph_pool import take_tokens


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
    if torch.compiler.is_exporting():  # ONNX has no cdist
        apart = centroid[:, :, None] - centroid[:, None]  # (B, S, S, 2)
        distance = apart.square().sum(dim=-1).sqrt()
    else:
        distance = torch.cdist(centroid, centroid, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distance.masked_fill(~live[:, None, :], torch.inf).argmin(dim=-1)
    return torch.where(live, torch.arange(count, device=labels.device), nearest)
