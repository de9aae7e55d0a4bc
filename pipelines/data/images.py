"""Downloaded bytes into stored images: checked, shrunk if large, measured and hashed.
A batch of rows in, the same rows with image columns or with the reason for refusal."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from typing import Any

os.environ.setdefault(
    "NO_ALBUMENTATIONS_UPDATE", "1"
)  # img2dataset's resizer would ask the network

import cv2
import numpy as np
from img2dataset.resizer import Resizer
from PIL import Image, ImageOps, UnidentifiedImageError

from pipelines.data.config import ImageConfig

STORED_FORMATS = ("JPEG", "PNG", "WEBP")  # kept as they came when nothing else asks for a change
EXIF_ORIENTATION = 0x0112


class ImageRefused(Exception):
    """An image that is not kept: reject reason and detail."""


def prepare_images(rows: list[dict[str, Any]], config: ImageConfig) -> list[dict[str, Any]]:
    """Replace `data` by `image`, sizes and hashes in every row that has no `reason` yet."""
    resize = Resizer(
        config.max_side_px,
        "keep_ratio_largest",
        resize_only_if_bigger=True,
        encode_quality=config.jpeg_quality,
        skip_reencode=True,
    )
    phash = cv2.img_hash.PHash.create()
    prepared = []
    for row in rows:
        if row["reason"] is None:
            data = row.pop("data")
            try:
                row |= _prepare(data, config, resize, phash)
            except ImageRefused as refusal:
                reason, detail = refusal.args
                row |= {"reason": reason, "detail": detail}
        prepared.append(row)
    return prepared


def _prepare(data: bytes, config: ImageConfig, resize: Resizer, phash: Any) -> dict[str, Any]:
    width, height = _check(data, config)
    stored = data
    if max(width, height) > config.max_side_px or _must_reencode(data):
        stored, _, _, _, _, error = resize(io.BytesIO(_upright(data)))
        if error is not None:
            raise ImageRefused("not_an_image", error[:200])
    pixels = cv2.imdecode(np.frombuffer(stored, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise ImageRefused("not_an_image", "decodes with one library and not with the other")
    return {
        "image": stored,
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "original_width": width,
        "original_height": height,
        "sha256": hashlib.sha256(data).hexdigest(),
        "phash": int.from_bytes(phash.compute(pixels).tobytes(), "big"),
    }


def _check(data: bytes, config: ImageConfig) -> tuple[int, int]:
    """Width and height as shown, after the header was trusted with nothing and the body read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of bombs, this refuses them
            image = Image.open(io.BytesIO(data))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        start = data[:16].decode("ascii", "replace")
        raise ImageRefused("not_an_image", f"starts with {start!r}: {error}"[:200]) from None
    except Image.DecompressionBombError as error:
        raise ImageRefused("decompression_bomb", str(error)[:200]) from None
    if image.width * image.height > config.max_pixels:
        raise ImageRefused("decompression_bomb", f"{image.width} x {image.height} pixels")
    if min(image.size) < config.min_side_px:
        raise ImageRefused("too_small", f"{image.width} x {image.height} pixels")
    try:
        image.load()
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise ImageRefused("truncated_image", str(error)[:200]) from None
    turned = image.getexif().get(EXIF_ORIENTATION, 1) >= 5
    return (image.height, image.width) if turned else image.size


def _must_reencode(data: bytes) -> bool:
    image = Image.open(io.BytesIO(data))
    turned = image.getexif().get(EXIF_ORIENTATION, 1) != 1
    plain = image.mode in ("RGB", "L") and not getattr(image, "is_animated", False)
    return turned or not plain or image.format not in STORED_FORMATS


def _upright(data: bytes) -> bytes:
    """Bytes that decode to upright 8-bit RGB on white; unchanged where they already do."""
    if not _must_reencode(data):
        return data
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    canvas = Image.new("RGB", image.size, "white")
    rgba = image.convert("RGBA")
    canvas.paste(rgba, mask=rgba.getchannel("A"))
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
