"""One picture as a model is shown it, and the way back from the model's square to the picture.
Evaluation, embedding and the heat maps come through here; random crops are in transforms.py."""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from caft.config import PictureRule
from caft.errors import DataError
from caft.transforms import decode_image, resize_square, to_tensor

Picture = str | os.PathLike[str] | bytes | Image.Image | np.ndarray | Tensor
MOST_RESIZED_PX = 2**25  # of a resized picture before it is cropped: 100 MB


@dataclass(frozen=True)
class Placement:
    """Where a crop lies: its upper left corner on the picture resized to (height, width)."""

    height: int
    width: int
    top: int
    left: int


def eval_image(picture: Picture, size_px: int, preprocess: PictureRule) -> Tensor:
    """The square of a picture that a model is shown, uint8 (3, size, size).

    Args:
        picture: as `read_picture` takes it.
        preprocess: 'crop' resizes the short side and keeps the central square, pixel by pixel as
            the published evaluation does with Pillow's bicubic filter; 'squash' resizes the whole
            picture to a square, so that every sentence of the caption still has its pixels.

    Raises:
        DataError: as `read_picture`.
    """
    return to_tensor(squared(read_picture(picture, preprocess), size_px, preprocess))


def squared(pixels: np.ndarray, size_px: int, preprocess: PictureRule) -> np.ndarray:
    """A picture (H, W, 3) as the square (size, size, 3) that `eval_image` shows."""
    if preprocess == "squash":
        return resize_square(pixels, size_px)
    return _centre_crop(pixels, size_px)


def read_picture(picture: Picture, preprocess: PictureRule) -> np.ndarray:
    """Any form of a picture as uint8 RGB (H, W, 3).

    A file is decoded as models of this rule have always seen it: under 'crop' as Pillow's
    `convert("RGB")` gives it, with transparency left out, 16-bit grey clipped and an orientation
    in its EXIF data not applied, all as in the published evaluation; under 'squash' by OpenCV,
    which turns it upright.

    Args:
        picture: path, encoded bytes, Pillow image of any mode, array (H, W, 3), (H, W, 4), (H, W)
            or (H, W, 1), or tensor (3, H, W), (4, H, W) or (1, H, W), of uint8.

    Raises:
        DataError: no such file, no image that can be decoded, or an array of another shape or
            type.
    """
    if isinstance(picture, str | os.PathLike):
        path = Path(picture)
        try:
            data = path.read_bytes()
        except OSError as error:
            reason = error.strerror or str(error)
            raise DataError(f"{path}: cannot be read as a picture: {reason}") from None
        try:
            return read_picture(data, preprocess)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
    if isinstance(picture, bytes | bytearray | memoryview):
        data = bytes(picture)
        return decode_image(data) if preprocess == "squash" else decode_as_published(data)
    if isinstance(picture, Image.Image):
        return _from_pillow(picture, "Pillow image", upright=preprocess == "squash")
    if isinstance(picture, Tensor):
        return _from_array(_channels_last(picture))
    if isinstance(picture, np.ndarray):
        return _from_array(picture)
    raise DataError(
        f"picture of type {type(picture).__name__}: give a path, encoded bytes, a Pillow image, a "
        "uint8 array (H, W, 3) or a uint8 tensor (3, H, W)"
    )


def decode_as_published(data: bytes) -> np.ndarray:
    """Encoded image bytes to uint8 RGB (H, W, 3), as Pillow opens and converts them.

    Raises:
        DataError: the bytes are no image that Pillow can decode, or are cut short.
    """
    what = f"image of {len(data)} bytes"
    try:
        image = Image.open(BytesIO(data))
    except Exception as error:
        raise _undecodable(what, error) from None
    with image:
        return _from_pillow(image, what, upright=False)


def to_picture(
    values: np.ndarray, height: int, width: int, preprocess: PictureRule, unseen: float
) -> np.ndarray:
    """A map (S, S) over the model's square as one over the picture (height, width), by the nearest
    value; where the model saw nothing it is `unseen`."""
    if preprocess == "squash":
        return cv2.resize(values, (width, height), interpolation=cv2.INTER_NEAREST)
    size_px = values.shape[0]
    place = placement(height, width, size_px)
    y = np.arange(height) * place.height // height - place.top
    x = np.arange(width) * place.width // width - place.left
    fitted = values[y.clip(0, size_px - 1)[:, None], x.clip(0, size_px - 1)]
    fitted[(y < 0) | (y >= size_px)] = unseen
    fitted[:, (x < 0) | (x >= size_px)] = unseen
    return fitted


def placement(height: int, width: int, size_px: int) -> Placement:
    """Where the square of a crop lies on a picture of this size."""
    short = min(height, width)
    tall, wide = size_px * height // short, size_px * width // short
    return Placement(tall, wide, round((tall - size_px) / 2), round((wide - size_px) / 2))


def _centre_crop(pixels: np.ndarray, size_px: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    place = placement(height, width, size_px)
    image = Image.fromarray(pixels)
    bicubic = Image.Resampling.BICUBIC
    if place.height * place.width <= MOST_RESIZED_PX:
        image = image.resize((place.width, place.height), bicubic)
        corner = place.left + size_px, place.top + size_px
        return np.asarray(image.crop((place.left, place.top, *corner)))
    # A strip of a picture: resized whole it would take gigabytes for the few pixels that stay.
    y, x = height / place.height, width / place.width
    top, left = place.top * y, place.left * x
    box = (left, top, min(width, left + size_px * x), min(height, top + size_px * y))
    return np.asarray(image.resize((size_px, size_px), bicubic, box=box))


def _from_pillow(image: Image.Image, what: str, upright: bool) -> np.ndarray:
    try:
        return np.asarray((ImageOps.exif_transpose(image) if upright else image).convert("RGB"))
    except Exception as error:
        raise _undecodable(what, error) from None


def _undecodable(what: str, error: Exception) -> DataError:
    """Of damaged files Pillow's plugins raise errors of any kind."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{what} cannot be decoded: {reason}")


def _channels_last(picture: Tensor) -> np.ndarray:
    if picture.dim() == 3:
        picture = picture.permute(1, 2, 0)
    return picture.detach().cpu().numpy()


def _from_array(array: np.ndarray) -> np.ndarray:
    if array.dtype != np.uint8:
        raise DataError(
            f"picture of {array.dtype}: uint8 values of 0 .. 255 are due; for values of 0 .. 1, "
            "give (255 * picture).round() as uint8"
        )
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or array.size == 0:
        raise DataError(
            f"picture of shape {tuple(array.shape)}: arrays are (H, W, 3) and tensors (3, H, W), "
            "with 1, 3 or 4 channels"
        )
    pixels = array.reshape(*array.shape[:2], channels)[..., :3]
    return np.ascontiguousarray(np.broadcast_to(pixels, (*array.shape[:2], 3)))
