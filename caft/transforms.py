"""Images from encoded bytes to normalised tensors, for training and for evaluation.
Between the dataset and the image encoder; label maps are cropped and flipped with the image."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from caft.errors import DataError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


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


def train_image(image: bytes, size_px: int, min_scale: float, rng: np.random.Generator) -> Tensor:
    """Random resized crop, uint8 (3, size, size): area uniform in [min_scale, 1] of the image,
    aspect ratio kept. No flip: captions speak of left and right."""
    pixels = decode_image(image)
    height, width = pixels.shape[:2]
    side = np.sqrt(rng.uniform(min_scale, 1.0))
    crop_h, crop_w = max(1, round(height * side)), max(1, round(width * side))
    top = rng.integers(0, height - crop_h + 1)
    left = rng.integers(0, width - crop_w + 1)
    return _to_tensor(_resize(pixels[top : top + crop_h, left : left + crop_w], size_px))


def normalise(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) to float32 with CLIP's mean and standard deviation."""
    mean, std = _statistics(images.device)
    return (images.float() / 255 - mean) / std


def denormalise(images: Tensor) -> Tensor:
    """The inverse of `normalise`, rounded to uint8."""
    mean, std = _statistics(images.device)
    return ((images.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    mean = torch.tensor(CLIP_MEAN, device=device).view(3, 1, 1)
    return mean, torch.tensor(CLIP_STD, device=device).view(3, 1, 1)


def _resize(pixels: np.ndarray, size_px: int) -> np.ndarray:
    if pixels.shape[:2] == (size_px, size_px):
        return pixels
    shrinking = min(pixels.shape[:2]) > size_px
    return cv2.resize(
        pixels, (size_px, size_px), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC
    )


def _to_tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
