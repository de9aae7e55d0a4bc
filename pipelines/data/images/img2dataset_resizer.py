"""One downloaded image into the bytes that img2dataset's `Resizer` makes of it.
Imported in the decoding process alone, where `image.resizer` is img2dataset."""

from __future__ import annotations

import hashlib
import inspect
import io
import math
import os
from contextlib import suppress
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image

from pipelines.data.images.hashing import contrast, perceptual_hash, small_grey
from pipelines.data.images.look import make_look
from pipelines.data.images.prepare import (
    ImageRefused,
    guarded,
    most_bytes,
    open_picture,
    upright_pixels,
)

if TYPE_CHECKING:
    from pipelines.data.config import ImageConfig

# What the Resizer says of an image that it does not store.
SAID = {
    "image too small": "too_small",
    "image area too large": "decompression_bomb",
    "aspect ratio too large": "aspect_ratio",
}


def _resizer_module() -> ModuleType:
    """img2dataset's module alone: its package imports Torch, pandas and W&B, four times as slow."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else its import asks the network
    package = find_spec("img2dataset")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("image.resizer: the package img2dataset is not installed")
    file = Path(package.origin).with_name("resizer.py")
    spec = spec_from_file_location("img2dataset_resizer", file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RESIZER = _resizer_module().Resizer
ARGUMENTS = inspect.signature(RESIZER).parameters


def prepare_image(data: bytes, config: ImageConfig) -> dict[str, Any]:
    """What is stored of an encoded image: as `prepare.prepare_image`, its bytes the Resizer's.

    The Resizer does not turn images as their EXIF says, and reads what OpenCV reads. phash and
    contrast are those of the whole image as it is shown: borders and crops hide no duplicate.

    Raises:
        ImageRefused: the Resizer stores none of it; more than `max_pixels`; kept as it came though
            its bytes are far more than a picture's; or not to be decoded at all.
    """
    return guarded(_prepare, data, config)


def _prepare(data: bytes, config: ImageConfig) -> dict[str, Any]:
    try:
        original: tuple[int, int] | None = open_picture(data, config).size
    except ImageRefused as refusal:
        if refusal.args[0] == "decompression_bomb":
            raise
        original = None  # a format that OpenCV may know
    except Exception:  # a damaged header is no damage to OpenCV
        original = None
    options = {name: getattr(config, name) for name in ARGUMENTS if hasattr(config, name)}
    options |= {name: math.inf for name, value in options.items() if value is None}
    image, width, height, original_width, original_height, said = RESIZER(**options)(
        io.BytesIO(data)
    )
    if said is not None:
        raise ImageRefused(_reason(said, data, original), said)
    pixels, size = _pixels(data, image, config)
    grey = small_grey(pixels)
    if width is None:  # disable_all_reencoding: it has not looked at the image
        with Image.open(io.BytesIO(image)) as picture:
            width, height = original_width, original_height = picture.size
    if image == data and len(data) > most_bytes(width, height):
        raise ImageRefused("too_large", f"{len(data)} bytes for {width} x {height} pixels")
    return {
        "image": image,
        "width": width,
        "height": height,
        "original_width": original_width,
        "original_height": original_height,
        "sha256": hashlib.sha256(data).hexdigest(),
        "phash": perceptual_hash(grey),
        "look": make_look(pixels, size),
        "contrast": contrast(grey),
    }


def _reason(said: str, data: bytes, size: tuple[int, int] | None) -> str:
    if said in SAID:
        return SAID[said]
    if "memory" in said.lower() or "allocate" in said:
        return "decoder_crash"
    return "not_an_image" if size is None else "truncated_image"


def _pixels(data: bytes, image: bytes, config: ImageConfig) -> tuple[np.ndarray, tuple[int, int]]:
    """Pixels, width and height of the original, or of what is stored where only OpenCV decodes
    the original."""
    try:
        return upright_pixels(data, config)
    except Exception:
        pixels = None
        with suppress(cv2.error):
            pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR_RGB)
        if pixels is None:
            raise
        return pixels, (pixels.shape[1], pixels.shape[0])
