"""Pictures of more than 8 bits a channel, or of floats, as 8 bits without losing their range.
prepare.py asks for it: Pillow would cut off low or high bits, or read such a file not at all."""

from __future__ import annotations

import io
import warnings

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin

PNG_BIT_DEPTH_AT = 24
TIFF_STARTS = (b"II*\0", b"MM\0*")
WIDTH, HEIGHT, BITS_PER_SAMPLE = 256, 257, 258
# A camera's or scanner's 10, 12 or 14 bits are often written into samples of 16.
USUAL_BITS = (8, 10, 12, 14, 16)
MOST_FRACTION = 100.0  # floats beyond are levels of grey, not shares of white


def is_deep(picture: Image.Image, data: bytes) -> bool:
    """Whether the samples of a PNG or TIFF file hold more than 8 bits."""
    if picture.format == "PNG":
        return data[PNG_BIT_DEPTH_AT] > 8
    if picture.format != "TIFF" or not isinstance(picture, TiffImagePlugin.TiffImageFile):
        return False
    return max(picture.tag_v2.get(BITS_PER_SAMPLE, (1,))) > 8


def as_8_bits(picture: Image.Image, data: bytes) -> Image.Image:
    """A deep picture in mode L, RGB or RGBA, not turned. Raises nearly anything."""
    if picture.mode == "F" or picture.mode.startswith("I"):
        return Image.fromarray(scaled(np.asarray(picture)))
    pixels = _decoded(data)
    return picture if pixels is None else _picture(pixels)


def tiff_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a TIFF file that Pillow does not know; None if it is none."""
    if not data.startswith(TIFF_STARTS):
        return None
    try:
        with warnings.catch_warnings(action="ignore"):
            return _size_of(data)
    except Exception:  # damaged: whatever its tags hold
        return None


def open_tiff(data: bytes) -> Image.Image | None:
    """A TIFF file that Pillow does not know, such as RGB in floats; None: nor does OpenCV."""
    pixels = _decoded(data)
    if pixels is None:
        return None
    picture = _picture(pixels)
    picture.format = "TIFF"
    return picture


def scaled(pixels: np.ndarray) -> np.ndarray:
    """Samples of any type as uint8, their range from black to white.

    Whole numbers are taken to have the fewest usual bits that hold the greatest. Floats are
    shares of white up to 1, or of the greatest; large ones are as whole numbers. Negative ones
    move the least to black.
    """
    if pixels.dtype == np.uint8:
        return pixels
    pixels = np.require(pixels, pixels.dtype.newbyteorder("="), ["C", "W"])
    is_float = pixels.dtype.kind == "f"
    if is_float:
        np.nan_to_num(pixels, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    least, most = min(0.0, float(pixels.min())), float(pixels.max())
    scale = 255 / _white(most - least, is_float)
    return cv2.convertScaleAbs(pixels, alpha=scale, beta=-least * scale)


def _white(most: float, is_float: bool) -> float:
    if is_float and most <= MOST_FRACTION:
        return max(1.0, most)
    bits = int(most).bit_length()
    return float(2 ** next((usual for usual in USUAL_BITS if usual >= bits), bits) - 1)


def _decoded(data: bytes) -> np.ndarray | None:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def _picture(pixels: np.ndarray) -> Image.Image:
    """Of OpenCV's pixels: grey, BGR or BGRA."""
    if pixels.ndim == 2:
        return Image.fromarray(scaled(pixels))
    colours = scaled(pixels[:, :, :3])[:, :, ::-1]
    if pixels.shape[2] == 4:
        colours = np.dstack([colours, scaled(pixels[:, :, 3])])
    return Image.fromarray(np.ascontiguousarray(colours))


def _size_of(data: bytes) -> tuple[int, int]:
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
    file = io.BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    return int(tags[WIDTH]), int(tags[HEIGHT])
