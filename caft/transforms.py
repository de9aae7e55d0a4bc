"""Images from encoded bytes to normalised tensors, and the random crops of training.
Between the dataset and the image encoder; label maps are cropped and flipped with the image."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from torch import Tensor

from caft.errors import DataError

STATISTICS = {  # mean and standard deviation per channel, of RGB in 0 .. 1
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
JPEG_START = b"\xff\xd8\xff"
REDUCTIONS = (8, 4, 2)  # by which a JPEG may be shrunk while it is decoded, fast
CROP_ATTEMPTS = 10  # before a crop of the due area and shape is given up
MAPPED_SHARE = 0.85  # of an image that a crop must show for a map of the whole image to serve it
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
        raise DataError(f"image of {len(data)} bytes cannot be decoded")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def train_image(
    image: bytes,
    size_px: int,
    min_scale: float,
    rng: np.random.Generator,
    labels: np.ndarray | None = None,
    flip_probability: float = 0.0,
    ratio: tuple[float, float] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Random resized crop, as `random_window` draws it.

    Crops of large images begin and end at multiples of 2, 4 or 8 px, so that their JPEG files
    can be shrunk by that factor while they are decoded.

    Args:
        image: an encoded image, upright as the data stage stores it.
        labels: label map (h, w) of the whole image, at any resolution.
        flip_probability: of mirroring left and right. Captions speak of left and right, so it is
            for data whose captions don't.
        ratio: least and greatest width over height of a crop, which is then resized by Pillow's
            bicubic filter, as published. None: all crops keep the image's own shape, and are
            resized by averages.

    Returns:
        uint8 (3, size, size), and the same part of the label map, int64 (size, size). No map where
        a crop of another shape leaves less than `MAPPED_SHARE` of the image: many of its
        superpixels would be gone, so the crop needs superpixels of its own.

    Raises:
        DataError: the bytes are no image that can be decoded.
    """
    pixels, by = None, 1
    size = _jpeg_size(image)
    if size is None:
        pixels = decode_image(image)
        size = pixels.shape[0], pixels.shape[1]
    height, width = size
    top, left, crop_h, crop_w = random_window(height, width, min_scale, ratio, rng)
    smallest = min(crop_h, crop_w)
    factor = next((f for f in REDUCTIONS if smallest >= f * size_px), 1)
    top, left, crop_h, crop_w = (n - n % factor for n in (top, left, crop_h, crop_w))
    if pixels is None:
        pixels, by = _decode_jpeg(image, height, width, factor)
    cropped = pixels[top // by : (top + crop_h) // by, left // by : (left + crop_w) // by]
    if ratio is None:
        picture = to_tensor(_resize_fast(cropped, size_px))
    else:
        picture = resize_bicubic(cropped, size_px)
    if ratio is not None and crop_h * crop_w < MAPPED_SHARE * height * width:
        labels = None
    window = (top / height, left / width, (top + crop_h) / height, (left + crop_w) / width)
    cut = None if labels is None else _window(labels, window, size_px)
    if flip_probability and rng.random() < flip_probability:
        return picture.flip(-1), None if cut is None else cut.flip(-1)
    return picture, cut


def random_window(
    height: int,
    width: int,
    min_scale: float,
    ratio: tuple[float, float] | None,
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random crop: its area uniform in [min_scale, 1] of the
    image, its width over height log-uniform in `ratio`, or the image's own.

    Where none of ten such windows fits into the image, it is the largest central one whose shape
    lies in `ratio` (torchvision's `RandomResizedCrop`).
    """
    if ratio is None:
        side = np.sqrt(rng.uniform(min_scale, 1.0))
        crop_h, crop_w = max(1, round(height * side)), max(1, round(width * side))
        top = int(rng.integers(0, height - crop_h + 1))
        return top, int(rng.integers(0, width - crop_w + 1)), crop_h, crop_w
    least, greatest = ratio
    for _ in range(CROP_ATTEMPTS):
        area = height * width * rng.uniform(min_scale, 1.0)
        shape = np.exp(rng.uniform(np.log(least), np.log(greatest)))
        crop_h, crop_w = round(np.sqrt(area / shape)), round(np.sqrt(area * shape))
        if 0 < crop_h <= height and 0 < crop_w <= width:
            top = int(rng.integers(0, height - crop_h + 1))
            return top, int(rng.integers(0, width - crop_w + 1)), crop_h, crop_w
    crop_h = min(height, max(1, round(width / least)))
    crop_w = min(width, max(1, round(height * greatest)))
    return (height - crop_h) // 2, (width - crop_w) // 2, crop_h, crop_w


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
    mean, std = (constants(values, device).view(3, 1, 1) for values in STATISTICS[name])
    return mean, std


def constants(values: Sequence[float], device: torch.device) -> Tensor:
    """(n,) float32, filled in on the device: a copy from the host would wait for the device."""
    return torch.cat([torch.full((1,), value, device=device) for value in values])


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


def resize_bicubic(pixels: np.ndarray, size_px: int) -> Tensor:
    """The whole crop (H, W, 3) as uint8 (3, size, size), by Pillow's bicubic filter as torch
    computes it: in a quarter of the time, nearly always the same level."""
    crop = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    resized = F.interpolate(crop, (size_px, size_px), mode="bicubic", antialias=True)
    return resized[0].contiguous()


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
