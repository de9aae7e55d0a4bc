"""Images from encoded bytes to normalised tensors, for training and for evaluation.
Between the dataset and the image encoder; label maps are cropped and flipped with the image."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from caft.errors import DataError

STATISTICS = {  # mean and standard deviation per channel, of RGB in 0 .. 1
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def decode_image(data: bytes) -> np.ndarray:
    """Encoded image bytes to uint8 RGB (H, W, 3).

    Raises:
        DataError: the bytes are no image that OpenCV can decode.
    """
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise DataError(f"image of {len(data)} bytes cannot be decoded; re-run the data stage")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def eval_image(image: bytes | np.ndarray, size_px: int) -> Tensor:
    """The whole image resized to a square, uint8 (3, size, size). Nothing is cropped away,
    so that every sentence of the caption still has its pixels."""
    pixels = decode_image(image) if isinstance(image, bytes) else image
    return _to_tensor(_resize(pixels, size_px))


def eval_labels(labels: np.ndarray, size_px: int) -> Tensor:
    """The label map (h, w) that belongs to `eval_image`'s result, int64 (size, size)."""
    return _window(labels, (0.0, 0.0, 1.0, 1.0), size_px)


def train_image(
    image: bytes,
    size_px: int,
    min_scale: float,
    rng: np.random.Generator,
    labels: np.ndarray | None = None,
    flip_probability: float = 0.0,
) -> tuple[Tensor, Tensor | None]:
    """Random resized crop: area uniform in [min_scale, 1] of the image, aspect ratio kept.

    Args:
        labels: label map (h, w) of the whole image, at any resolution.
        flip_probability: of mirroring left and right. Captions speak of left and right, so it is
            for data whose captions don't.

    Returns:
        uint8 (3, size, size), and the same part of the label map, int64 (size, size).
    """
    pixels = decode_image(image)
    height, width = pixels.shape[:2]
    side = np.sqrt(rng.uniform(min_scale, 1.0))
    crop_h, crop_w = max(1, round(height * side)), max(1, round(width * side))
    top = int(rng.integers(0, height - crop_h + 1))
    left = int(rng.integers(0, width - crop_w + 1))
    cropped = _to_tensor(_resize(pixels[top : top + crop_h, left : left + crop_w], size_px))
    window = (top / height, left / width, (top + crop_h) / height, (left + crop_w) / width)
    cut = None if labels is None else _window(labels, window, size_px)
    if flip_probability and rng.random() < flip_probability:
        return cropped.flip(-1), None if cut is None else cut.flip(-1)
    return cropped, cut


def normalise(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) to float32 with CLIP's mean and standard deviation."""
    mean, std = channel_statistics("clip", images.device)
    return (images.float() / 255 - mean) / std


def denormalise(images: Tensor) -> Tensor:
    """The inverse of `normalise`, rounded to uint8."""
    mean, std = channel_statistics("clip", images.device)
    return ((images.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def channel_statistics(name: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, each (3, 1, 1), of one of `STATISTICS`."""
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in STATISTICS[name])
    return mean, std


def _resize(pixels: np.ndarray, size_px: int) -> np.ndarray:
    if pixels.shape[:2] == (size_px, size_px):
        return pixels
    shrinking = min(pixels.shape[:2]) > size_px
    return cv2.resize(
        pixels, (size_px, size_px), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC
    )


def _window(labels: np.ndarray, window: tuple[float, float, float, float], size_px: int) -> Tensor:
    """Part of a label map at (size, size), by the nearest label; the window's top, left, bottom
    and right are fractions of the whole."""
    middles = (np.arange(size_px) + 0.5) / size_px
    y, x = (
        np.minimum(((low + (high - low) * middles) * side).astype(np.int64), side - 1)
        for low, high, side in zip(window[:2], window[2:], labels.shape, strict=True)
    )
    return torch.from_numpy(labels[y[:, None], x].astype(np.int64))


def _to_tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
