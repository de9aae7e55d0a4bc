"""The one door to superpixels: label maps of a batch of images by SFCN, SEEDS or a plain grid.
Called by the model, or ahead of it by the loaders that run where SEEDS runs, on CPUs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from caft.config import SuperpixelConfig
from caft.errors import ConfigError, DataError
from caft.superpixels.folded import folded
from caft.superpixels.network import RGB_MEAN, SFCN, decode_labels
from caft.transforms import channel_statistics, constants, denormalise, normalise

SEEDS_LEVELS, SEEDS_PRIOR, SEEDS_BINS = 1, 2, 15  # as CAST uses them


@torch.no_grad()
def superpixel_labels(
    images: Tensor, config: SuperpixelConfig, network: SFCN | None = None
) -> Tensor:
    """Label maps (B, H, W) int64 with labels 0 .. rows x columns - 1, as `cell_grid` counts them.

    Where a side is no multiple of the cell, the image is stretched to the next smaller one, cut,
    and the map is stretched back: all cells then have the same size, a little above `cell_px`.

    Args:
        images: (B, 3, H, W), uint8 RGB or float normalised by `caft.transforms.normalise`.
        network: the superpixel network, on the images' device, where `method` is 'sfcn'.

    Raises:
        ConfigError: 'sfcn' without a network, or 'seeds' where the installed OpenCV has no
            `ximgproc` module.
        DataError: a side is shorter than a cell.
    """
    height, width = images.shape[-2:]
    rows, columns = cell_grid(height, width, config.cell_px)
    if config.method == "grid":
        cells = torch.arange(rows * columns, device=images.device).view(1, rows, columns)
        return stretch_labels(cells, height, width).expand(len(images), -1, -1)
    fitted = _fit_cells(images, rows * config.cell_px, columns * config.cell_px)
    if config.method == "seeds":
        pixels = fitted if fitted.dtype == torch.uint8 else denormalise(fitted)
        arrays = pixels.permute(0, 2, 3, 1).cpu().numpy()
        maps = [seeds_labels(image, rows * columns, config.iterations) for image in arrays]
        labels = torch.from_numpy(np.stack(maps)).long().to(images.device)
    elif network is None:
        raise ConfigError("superpixels.method 'sfcn' needs its network; call model.encode_image")
    else:
        labels = _sfcn_labels(fitted, config, network)
    return stretch_labels(labels, height, width)


def cell_grid(height: int, width: int, cell_px: int) -> tuple[int, int]:
    """Rows and columns of cells in an image; their product is the number of superpixels.

    Raises:
        DataError: a side is shorter than a cell.
    """
    if min(height, width) < cell_px:
        raise DataError(
            f"image of {width} x {height} px: a side is shorter than one superpixel cell of "
            f"{cell_px} px; enlarge it"
        )
    return height // cell_px, width // cell_px


def seeds_labels(image: np.ndarray, count: int, iterations: int) -> np.ndarray:
    """OpenCV SEEDS on one uint8 RGB image (H, W, 3): an int32 label map (H, W), 0 .. count - 1."""
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
    return np.minimum(seeds.getLabels(), count - 1)  # of one or two cells it makes more


def stretch_labels(labels: Tensor, height: int, width: int) -> Tensor:
    """Label maps (B, h, w) at another size (B, height, width), by the nearest label."""
    if labels.shape[-2:] == (height, width):
        return labels
    y, x = (
        (2 * torch.arange(target, device=labels.device) + 1) * source // (2 * target)
        for source, target in zip(labels.shape[-2:], (height, width), strict=True)
    )
    return labels[:, y[:, None], x]


def _fit_cells(images: Tensor, height: int, width: int) -> Tensor:
    if images.shape[-2:] == (height, width):
        return images
    fitted = F.interpolate(images.float(), (height, width), mode="bilinear", antialias=True)
    return fitted.round().to(torch.uint8) if images.dtype == torch.uint8 else fitted


def _sfcn_labels(images: Tensor, config: SuperpixelConfig, network: SFCN) -> Tensor:
    if not images.is_cuda:
        return network_labels(images, network, config.unnormalise_with)
    labels = _network_labels_graph() if network.compiled else network_labels
    return labels(images, folded(network), config.unnormalise_with)


def network_labels(images: Tensor, network: SFCN, statistics: str) -> Tensor:
    """Label maps (B, H, W) of images as `superpixel_labels` takes them, by `network` in its own
    precision under any autocast."""
    if images.dtype == torch.uint8:
        images = normalise(images)
    mean, std = channel_statistics(statistics, images.device)
    rgb = images.float() * std + mean - constants(RGB_MEAN, images.device).view(3, 1, 1)
    rgb = rgb.to(network.dtype)
    with torch.autocast(images.device.type, enabled=False):
        # The likeliest cell has the largest logit, and a GPU is spared nine passes in float32.
        half = network.dtype != torch.float32
        return decode_labels(network.scores(rgb) if half else network(rgb))


@cache
def _network_labels_graph() -> Callable[..., Tensor]:
    return torch.compile(network_labels, fullgraph=True)
