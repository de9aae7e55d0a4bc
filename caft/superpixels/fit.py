"""Fits the superpixel network to photographs without labels; the result is a weights file.
Apart from the three stages: most users take the weights that are shipped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from einops import einsum, rearrange
from torch import Tensor

from caft.checkpoint import save_tensors
from caft.config import SFCN_CELL_PX as CELL
from caft.errors import ConfigError, DataError, StorageError
from caft.superpixels.network import NEIGHBOURS, RGB_MEAN, SFCN, cell_neighbours
from caft.transforms import decode_image

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
LAB_SCALE = 255.0  # LAB, lightness 0 .. 100, is divided by it
NORM_EPS = 1e-8  # keeps the square root's slope finite where nothing is left to reconstruct
MASS_EPS = 1e-6  # a cell that no pixel chooses has a mean of zero


@dataclass(frozen=True)
class FitConfig:
    """How the network is fitted. Equal values and images give equal weights on one machine."""

    steps: int = 1000
    crops: int = 10  # per step
    crop_px: int = 160
    lr: float = 2e-3
    position_weight: float = 0.025  # over the cell size, beside an error of colour of weight 1
    images: int = 1000  # at most so many are read: they are held in memory
    max_side_px: int = 256  # larger images are shrunk first: crops then show things, not texture
    seed: int = 0
    bfloat16: bool = False

    def __post_init__(self) -> None:
        if self.crop_px % CELL:
            raise ConfigError(f"crop_px {self.crop_px}: must be a multiple of the cell, {CELL} px")
        for name in ("steps", "crops", "crop_px", "images", "lr", "position_weight", "max_side_px"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} {getattr(self, name)}: must be greater than 0")


def fit(images: list[np.ndarray], config: FitConfig, report: Callable[[int, float], None]) -> SFCN:
    """A network fitted to uint8 RGB images (H, W, 3) with Adam on random crops and flips.

    `report(step, loss)` is called after every step.
    """
    torch.manual_seed(config.seed)
    network = SFCN().train()
    optimizer = torch.optim.Adam(network.parameters(), lr=config.lr)
    crops = random_crops(images, config)
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * (1 + math.cos(math.pi * step / config.steps)) / 2
        rgb, lab = next(crops)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16):
            probabilities = network(rgb)
        loss = reconstruction_loss(probabilities.float(), lab, config.position_weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        report(step + 1, loss.item())
    return network.eval()


def reconstruction_loss(probabilities: Tensor, lab: Tensor, position_weight: float) -> Tensor:
    """How badly superpixel means, spread back, reconstruct each pixel's colour and position.

    Args:
        probabilities: (B, 9, H, W) over the cells around each pixel.
        lab: (B, 3, H, W) LAB colour over `LAB_SCALE`.
        position_weight: of the error of position in px, over the cell size (Yang et al., 2020).
    """
    batch, _, height, width = lab.shape
    y = torch.arange(height, dtype=lab.dtype, device=lab.device)[:, None].expand(height, width)
    x = torch.arange(width, dtype=lab.dtype, device=lab.device).expand(height, width)
    position = torch.stack([y, x]).expand(batch, -1, -1, -1)
    features = torch.cat([lab, position, torch.ones_like(lab[:, :1])], dim=1)  # (B, 6, H, W)
    pixels = rearrange(features, "b f (r i) (c j) -> b f r i c j", i=CELL, j=CELL)
    soft = rearrange(probabilities, "b n (r i) (c j) -> b n r i c j", i=CELL, j=CELL)
    target = cell_neighbours(height // CELL, width // CELL, lab.device).flatten()  # (9 r c)
    shares = einsum(soft, pixels, "b n r i c j, b f r i c j -> b f n r c").flatten(2)
    sums = shares.new_zeros(batch, features.shape[1], height * width // CELL**2)
    sums = sums.index_add(2, target, shares)  # (B, 6, cells)
    means = sums[:, :-1] / (sums[:, -1:] + MASS_EPS)
    around = means[:, :, target].view(batch, -1, NEIGHBOURS, height // CELL, width // CELL)
    back = einsum(soft, around, "b n r i c j, b f n r c -> b f r i c j")
    squared = (back - pixels[:, :-1]).square()
    colour = (squared[:, :3].sum(dim=1) + NORM_EPS).sqrt().mean()
    distance = (squared[:, 3:].sum(dim=1) + NORM_EPS).sqrt().mean()
    return colour + position_weight / CELL * distance


def random_crops(images: list[np.ndarray], config: FitConfig) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of the network's input and of LAB, each (B, 3, crop, crop)."""
    rng = np.random.default_rng(config.seed)
    prepared = [_at_most(image, config.max_side_px, config.crop_px) for image in images]
    mean = torch.tensor(RGB_MEAN).view(3, 1, 1)
    while True:
        crops = []
        for _ in range(config.crops):
            image = prepared[rng.integers(len(prepared))]
            top = rng.integers(image.shape[0] - config.crop_px + 1)
            left = rng.integers(image.shape[1] - config.crop_px + 1)
            crop = image[top : top + config.crop_px, left : left + config.crop_px]
            crops.append(crop[:, :: rng.choice((-1, 1))])
        pixels = np.stack(crops).astype(np.float32) / 255
        lab = np.stack([cv2.cvtColor(crop, cv2.COLOR_RGB2LAB) for crop in pixels]) / LAB_SCALE
        yield _channels_first(pixels) - mean, _channels_first(lab)


def load_images(folder: str | Path, limit: int = FitConfig.images) -> list[np.ndarray]:
    """At most `limit` images of a folder of image files, or of a dataset's Parquet parts, spread
    over all of them.

    Raises:
        DataError: no such folder, no image in it, or one that cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; name a dataset or a folder of images")
    parts = sorted(folder.glob("part-*.parquet"))
    if parts:
        share = math.ceil(limit / len(parts))
        named = [entry for part in parts for entry in _part_images(part, share)]
    else:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        named = [(str(path), _read(path)) for path in files[:: math.ceil(len(files) / limit) or 1]]
    if not named:
        raise DataError(f"{folder}: no image in it; name a dataset or a folder of .jpg or .png")
    images = []
    for name, data in named:
        try:
            images.append(decode_image(data))
        except DataError as error:
            raise DataError(f"{name}: {error}") from None
    return images


def save_network(network: SFCN, path: Path, metadata: dict[str, str]) -> None:
    """Write the weights as float16 safetensors.

    Raises:
        StorageError: the file cannot be written.
    """
    weights = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in network.state_dict().items()
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(weights, path, metadata)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error}") from None


def _part_images(part: Path, limit: int) -> Iterator[tuple[str, bytes]]:
    try:
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(batch_size=limit, columns=["image"]):
                for row, data in enumerate(batch["image"].to_pylist()):
                    yield f"{part}: row {row}", data or b""
                return
    except (pa.ArrowException, OSError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{part}: corrupt Parquet, or no column 'image' ({reason})") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _at_most(image: np.ndarray, max_side_px: int, min_side_px: int) -> np.ndarray:
    """The image with its long side at most `max_side_px`, and then its short one large enough
    for a crop."""
    height, width = image.shape[:2]
    scale = min(1.0, max_side_px / max(height, width))
    scale = max(scale, min_side_px / min(height, width))
    if scale == 1.0:
        return image
    size = (max(min_side_px, round(width * scale)), max(min_side_px, round(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def _channels_first(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
