"""Images from encoded bytes to normalised tensors, and the random crops of training.
Between the dataset and the image encoder; label maps are cropped and flipped with the image."""

from __future__ import annotations

import cv2
import numpy as np
import simplejpeg
import torch
from torch import Tensor

from caft.errors import DataError

STATISTICS = {  # mean and standard deviation per channel, of RGB in 0 .. 1
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
JPEG_START = b"\xff\xd8\xff"
REDUCTIONS = (8, 4, 2)  # by which a JPEG may be shrunk while it is decoded, fast
SLIGHT, STRONG = 1.25, 2.5  # shrunk less, lines are as good as averages; more, averages are due


def decode_image(data: bytes) -> np.ndarray:
    """Encoded image bytes to uint8 RGB (H, W, 3).

    Raises:
        DataError: the bytes are no image that OpenCV can decode.
    """
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:  # no bytes at all, or too many pixels
        image = None
    if image is None:
        raise DataError(f"image of {len(data)} bytes cannot be decoded; re-run the data stage")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def train_image(
    image: bytes,
    size_px: int,
    min_scale: float,
    rng: np.random.Generator,
    labels: np.ndarray | None = None,
    flip_probability: float = 0.0,
) -> tuple[Tensor, Tensor | None]:
    """Random resized crop: area uniform in [min_scale, 1] of the image, aspect ratio kept.

    Crops of large images begin and end at multiples of 2, 4 or 8 px, so that their JPEG files
    can be shrunk by that factor while they are decoded.

    Args:
        image: an encoded image, upright as the data stage stores it.
        labels: label map (h, w) of the whole image, at any resolution.
        flip_probability: of mirroring left and right. Captions speak of left and right, so it is
            for data whose captions don't.

    Returns:
        uint8 (3, size, size), and the same part of the label map, int64 (size, size).

    Raises:
        DataError: the bytes are no image that can be decoded.
    """
    pixels, by = None, 1
    size = _jpeg_size(image)
    if size is None:
        pixels = decode_image(image)
        size = pixels.shape[0], pixels.shape[1]
    height, width = size
    side = np.sqrt(rng.uniform(min_scale, 1.0))
    crop_h, crop_w = max(1, round(height * side)), max(1, round(width * side))
    top = int(rng.integers(0, height - crop_h + 1))
    left = int(rng.integers(0, width - crop_w + 1))
    smallest = min(crop_h, crop_w)
    factor = next((f for f in REDUCTIONS if smallest >= f * size_px), 1)
    top, left, crop_h, crop_w = (n - n % factor for n in (top, left, crop_h, crop_w))
    if pixels is None:
        pixels, by = _decode_jpeg(image, height, width, factor)
    cropped = pixels[top // by : (top + crop_h) // by, left // by : (left + crop_w) // by]
    picture = to_tensor(_resize_fast(cropped, size_px))
    window = (top / height, left / width, (top + crop_h) / height, (left + crop_w) / width)
    cut = None if labels is None else _window(labels, window, size_px)
    if flip_probability and rng.random() < flip_probability:
        return picture.flip(-1), None if cut is None else cut.flip(-1)
    return picture, cut


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


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG file, None for anything else."""
    if not data.startswith(JPEG_START):
        return None
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return height, width


def _decode_jpeg(data: bytes, height: int, width: int, factor: int) -> tuple[np.ndarray, int]:
    """RGB pixels shrunk by `factor`, sides rounded up, and that factor; 1 where it must be."""
    least = {"min_height": -(-height // factor), "min_width": -(-width // factor)}
    try:
        return simplejpeg.decode_jpeg(data, "RGB", **least), factor
    except ValueError:  # damaged, or colours stored in a way that only OpenCV reads
        return decode_image(data), 1


def _resize_fast(pixels: np.ndarray, size_px: int) -> np.ndarray:
    """As `resize_square` to the eye. Averages over fractions of pixels are slow: where an image
    shrinks a little, lines are drawn to twice the size first, so that averages are of whole
    pixels."""
    smallest, largest = sorted(side / size_px for side in pixels.shape[:2])
    if smallest <= 1 or largest > STRONG:
        return resize_square(pixels, size_px)
    if largest > SLIGHT:
        double = (2 * size_px, 2 * size_px)
        pixels = cv2.resize(pixels, double, interpolation=cv2.INTER_LINEAR)
        return cv2.resize(pixels, (size_px, size_px), interpolation=cv2.INTER_AREA)
    return cv2.resize(pixels, (size_px, size_px), interpolation=cv2.INTER_LINEAR)


def resize_square(pixels: np.ndarray, size_px: int) -> np.ndarray:
    """The whole picture (H, W, 3) at (size, size): averages where it shrinks, else bicubic."""
    if pixels.shape[:2] == (size_px, size_px):
        return pixels
    shrinking = min(pixels.shape[:2]) > size_px
    return cv2.resize(
        pixels, (size_px, size_px), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC
    )


def eval_labels(labels: np.ndarray, size_px: int) -> Tensor:
    """The label map (h, w) of a whole picture at (size, size), int64, by the nearest label."""
    return _window(labels, (0.0, 0.0, 1.0, 1.0), size_px)


def _window(labels: np.ndarray, window: tuple[float, float, float, float], size_px: int) -> Tensor:
    """Part of a label map at (size, size), by the nearest label; the window's top, left, bottom
    and right are fractions of the whole."""
    middles = (np.arange(size_px) + 0.5) / size_px
    y, x = (
        np.minimum(((low + (high - low) * middles) * side).astype(np.int64), side - 1)
        for low, high, side in zip(window[:2], window[2:], labels.shape, strict=True)
    )
    return torch.from_numpy(labels[y[:, None], x].astype(np.int64))


def to_tensor(pixels: np.ndarray) -> Tensor:
    """uint8 RGB (H, W, 3) to uint8 (3, H, W)."""
    planes = np.empty((3, *pixels.shape[:2]), dtype=np.uint8)
    cv2.split(pixels, [*planes])  # into them, four times as fast as a transposed copy
    return torch.from_numpy(planes)
