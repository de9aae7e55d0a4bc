"""One downloaded image into what is stored: checked, shrunk if large, measured and hashed.
The chunk step calls it for every row, through decoder.py, so it imports no torch and no Ray."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageCms, UnidentifiedImageError

from pipelines.data.images import deep
from pipelines.data.images.formats import FORMATS
from pipelines.data.images.hashing import contrast, perceptual_hash, small_grey
from pipelines.data.images.jpeg import junk_before, repaired
from pipelines.data.images.look import make_look

if TYPE_CHECKING:
    from pipelines.data.config import ImageConfig


JPEG_FORMATS = ("JPEG", "MPO")  # MPO: a JPEG file with further pictures behind the first
STORED_FORMATS = (*JPEG_FORMATS, "PNG", "WEBP")
PLAIN_MODES = ("RGB", "L")
ORIENTATION_MARKS = (b"eXIf", b"EXIF", b"tiff:Orientation")  # of PNG, of WEBP, of XMP
EXIF_ORIENTATION, UPRIGHT = 0x0112, 1
HASHED_SIDE_PX = 128  # a JPEG that is kept as it came is decoded no further than to this:
# shrunk more, text of a card looks different once the picture is cropped by a pixel
UNUSUAL = "subsampling level"  # of colours, which libjpeg decodes and its short interface does not
STRAY = re.compile(r"(\d+) extraneous bytes")  # which all decoders pass over
MOST_STRAY_BYTES = 16
# A moving picture that begins with less contrast is looked at for a frame that shows something.
FAINT_CONTRAST = 8.0
MOST_FRAMES, MOST_FRAME_PIXELS = 100, 100_000_000
LITTLE = 1.25  # shrunk less, linear interpolation is as good as averaging, and five times as fast
MAX_DETAIL_CHARS = 200
# More than the pixels take without compression, and room for a colour profile and small EXIF data.
STORED_BYTES_PER_PIXEL, STORED_EXTRA_BYTES = 4, 2**16

Image.MAX_IMAGE_PIXELS = None  # config.max_pixels decides, before anything is decoded


class ImageRefused(Exception):
    """An image that is not kept: reject reason and detail."""

    def __init__(self, reason: str, detail: object) -> None:
        super().__init__(reason, " ".join(str(detail).split())[:MAX_DETAIL_CHARS])


def prepare_image(data: bytes, config: ImageConfig) -> dict[str, Any]:
    """What is stored of an encoded image.

    JPEG, PNG and WEBP files that are small enough, upright, opaque and of 8 bits stay as they
    came; a JPEG without an end marker, with bytes between its segments or with far more than a
    picture loses what is no picture. All else becomes a JPEG without metadata, its colours those
    of sRGB: shrunk, turned as its EXIF says, on white where it is transparent, one frame where it
    moves (the first, or one that shows something).

    Returns:
        image (bytes), width and height of it; original_width and original_height of `data` as
        shown, that is after turning; sha256 (hex) of `data`; phash (64 bits) and look, by which it
        is compared with others; contrast, the
        standard deviation of grey levels of a 32-px version (0 .. 127).

    Raises:
        ImageRefused: whatever else is wrong with the bytes.
    """
    return guarded(_prepare, data, config)


def hash_image(data: bytes, config: ImageConfig) -> dict[str, Any]:
    """phash and look of an encoded image, and mirrored_phash and mirrored_look, those of the image
    mirrored left and right.

    Raises:
        ImageRefused: as `prepare_image` does.
    """
    return guarded(_hash, data, config)


def guarded(work: Any, data: bytes, config: ImageConfig) -> dict[str, Any]:
    """`work` of an image and its configuration; all that it raises is an ImageRefused."""
    try:
        return work(data, config)
    except ImageRefused:
        raise
    except MemoryError:
        raise ImageRefused("decoder_crash", "out of memory") from None
    except Exception as error:  # over damaged data decoders raise nearly anything
        raise ImageRefused("truncated_image", error) from None


def _prepare(data: bytes, config: ImageConfig) -> dict[str, Any]:
    picture = open_picture(data, config)
    pixels, orientation, stored = _decode(picture, data, config.max_side_px)
    width, height = _upright_size(picture, orientation)
    grey = small_grey(pixels)
    result = {
        "image": stored,
        "width": width,
        "height": height,
        "original_width": width,
        "original_height": height,
        "sha256": hashlib.sha256(data).hexdigest(),
        "phash": perceptual_hash(grey),
        "look": make_look(pixels, (width, height)),
        "contrast": contrast(grey),
    }
    if stored is None:
        result |= {
            "image": _encode(pixels, config.jpeg_quality),
            "width": pixels.shape[1],
            "height": pixels.shape[0],
        }
    return result


def _hash(data: bytes, config: ImageConfig) -> dict[str, Any]:
    pixels, size = upright_pixels(data, config)
    grey = small_grey(pixels)
    return {
        "phash": perceptual_hash(grey),
        "look": make_look(pixels, size),
        "mirrored_phash": perceptual_hash(grey[:, ::-1]),
        "mirrored_look": make_look(pixels, size, mirrored=True),
    }


def upright_pixels(data: bytes, config: ImageConfig) -> tuple[np.ndarray, tuple[int, int]]:
    """Pixels of an encoded image as it is shown, enough for its hash and look, and its width and
    height. Raises nearly anything."""
    picture = open_picture(data, config)
    pixels, orientation, _ = _decode(picture, data, config.max_side_px)
    return pixels, _upright_size(picture, orientation)


def open_picture(data: bytes, config: ImageConfig) -> Image.Image:
    """The picture with its header read and its pixels not.

    Raises:
        ImageRefused: not in one of FORMATS, or more than `max_pixels`.
    """
    junk = junk_before(data)
    picture: Image.Image
    try:
        picture = Image.open(io.BytesIO(data[junk:]), formats=FORMATS)
    except UnidentifiedImageError:
        size = deep.tiff_size(data)
        if size is not None:
            _check_pixels(size, config)
        opened = deep.open_tiff(data) if size is not None else None
        if opened is None:
            raise ImageRefused("not_an_image", f"starts with {data[:16]!r}") from None
        picture = opened
    _check_pixels(picture.size, config)
    return picture


def _check_pixels(size: tuple[int, int], config: ImageConfig) -> None:
    width, height = size
    if width * height > config.max_pixels:
        raise ImageRefused("decompression_bomb", f"{width} x {height} pixels")


def _decode(
    picture: Image.Image, data: bytes, max_side_px: int
) -> tuple[np.ndarray, int, bytes | None]:
    """Pixels, EXIF orientation, and the file that is stored without encoding pixels, if any.

    Pixels are grey (H, W) or RGB (H, W, 3), upright, no longer than `max_side_px`; those of a
    JPEG file that is stored are smaller, enough for its hash.
    """
    longest = max(picture.size)
    if longest > max_side_px:  # rounded up, as libjpeg does where it shrinks
        width, height = (-(-side * max_side_px // longest) for side in picture.size)
    else:
        width, height = picture.size
    if picture.format in JPEG_FORMATS:
        orientation = _orientation(picture)
        plain = picture.mode in PLAIN_MODES and orientation == UPRIGHT
        if plain and longest <= max_side_px:
            least = (HASHED_SIDE_PX, HASHED_SIDE_PX)
            pixels, file = _decode_jpeg(data, picture, picture.mode, least)
            if file is not None:
                return pixels, orientation, file
        pixels, _ = _decode_jpeg(data, picture, picture.mode, (width, height))
    else:
        opaque = _decode_plain(picture, data)
        pixels = opaque if opaque is not None else _pixels(picture, data, (width, height))
        orientation = UPRIGHT if opaque is not None else _orientation(picture)
        if opaque is not None and longest <= max_side_px and _fits(data, picture):
            return pixels, orientation, data
    pixels = _to_srgb(_shrink(pixels, width, height), picture.info.get("icc_profile"))
    return _turn(pixels, orientation), orientation, None


def _upright_size(picture: Image.Image, orientation: int) -> tuple[int, int]:
    width, height = picture.size
    return (height, width) if orientation >= 5 else (width, height)


def _fits(data: bytes, picture: Image.Image) -> bool:
    """Whether a file holds no more than a picture: megabytes of comments are more."""
    return len(data) <= most_bytes(*picture.size)


def most_bytes(width: int, height: int) -> int:
    """Of a file that is stored as it came."""
    return STORED_BYTES_PER_PIXEL * width * height + STORED_EXTRA_BYTES


def _orientation(picture: Image.Image) -> int:
    """EXIF orientation, 1 .. 8; 0 if it cannot be told, so that the file is not kept as it came."""
    try:
        orientation = picture.getexif().get(EXIF_ORIENTATION, UPRIGHT)
    except Exception:  # damaged metadata is no reason to refuse a picture
        return 0
    return orientation if orientation in range(1, 9) else 0


def _decode_plain(picture: Image.Image, data: bytes) -> np.ndarray | None:
    """Pixels of a PNG or WEBP file that every reader shows as one opaque, upright picture of 8-bit
    RGB or grey; None for other files. OpenCV is faster than Pillow, and refuses damaged ones."""
    if picture.format not in STORED_FORMATS or picture.mode not in PLAIN_MODES:
        return None
    other_depth = picture.format == "PNG" and data[deep.PNG_BIT_DEPTH_AT] != 8
    moves = getattr(picture, "is_animated", False)
    turned = any(mark in data for mark in ORIENTATION_MARKS) and _orientation(picture) != UPRIGHT
    if other_depth or moves or turned or picture.has_transparency_data:
        return None
    flags = cv2.IMREAD_COLOR_RGB if picture.mode == "RGB" else cv2.IMREAD_GRAYSCALE
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)


def _decode_jpeg(
    data: bytes, picture: Image.Image, mode: str, least: tuple[int, int]
) -> tuple[np.ndarray, bytes | None]:
    """Pixels of a JPEG file in a mode of Pillow's, shrunk by a power of two while they are decoded
    if they stay at least of the size `least`, width and height; and the file to store: as it came,
    or without what is no picture, or None if that still is not clean.

    Raises:
        ValueError, OSError: the picture is not complete, or is damaged.
    """
    factor = 8
    while factor > 1 and any(
        -(-side // factor) < low for side, low in zip(picture.size, least, strict=True)
    ):
        factor //= 2
    smallest = [-(-side // factor) for side in picture.size]
    clean = data[junk_before(data) :]
    if _fits(clean, picture):
        with suppress(ValueError, OSError, SyntaxError):
            return _jpeg_pixels(clean, mode, smallest), clean
    mended = repaired(clean)
    if mended is None:
        raise ValueError("the file ends before its picture does")
    try:
        return _jpeg_pixels(mended, mode, smallest), mended if _fits(mended, picture) else None
    except ValueError as error:
        stray = STRAY.search(str(error))
        if stray is None or int(stray[1]) > MOST_STRAY_BYTES:
            raise
    return _jpeg_pixels(mended, mode, smallest, strict=False), None


def _jpeg_pixels(
    data: bytes, mode: str, smallest: Sequence[int], strict: bool = True
) -> np.ndarray:
    """Raises ValueError or OSError over damage; `strict`: over anything that libjpeg warns of."""
    width, height = smallest
    try:
        pixels = simplejpeg.decode_jpeg(
            data,
            {"L": "GRAY"}.get(mode, mode),
            min_width=width,
            min_height=height,
            strict=strict,
        )
    except ValueError as error:
        if UNUSUAL not in str(error):
            raise
        return np.asarray(Image.open(io.BytesIO(data), formats=JPEG_FORMATS).convert(mode))
    if mode == "CMYK":
        return 255 - pixels  # all write it as Adobe does, inverted
    return pixels[:, :, 0] if mode == "L" else pixels


def _pixels(picture: Image.Image, data: bytes, least: tuple[int, int]) -> np.ndarray:
    """Grey, RGB or CMYK pixels of a picture that is no JPEG, averaged by a whole number if they
    stay at least of the size `least`: memory then holds few large copies."""
    picture.load()
    if deep.is_deep(picture, data):
        return _flat(deep.as_8_bits(picture, data), least)
    pixels = _flat(picture, least)
    frames = min(getattr(picture, "n_frames", 1), MOST_FRAMES)
    most = contrast(small_grey(pixels)) if frames > 1 else FAINT_CONTRAST
    if most >= FAINT_CONTRAST:
        return pixels
    for number in range(1, min(frames, MOST_FRAME_PIXELS // (picture.width * picture.height))):
        try:
            picture.seek(number)
            frame = _flat(picture, least)
        except (EOFError, OSError, SyntaxError, ValueError):  # damaged from here on
            break
        shows = contrast(small_grey(frame))
        if shows > most:
            pixels, most = frame, shows
    return pixels


def _flat(picture: Image.Image, least: tuple[int, int]) -> np.ndarray:
    """`_pixels` of a picture of 8 bits, on white where it is transparent."""
    mode = picture.mode if picture.mode in ("L", "RGB", "CMYK") else "RGB"
    mode = "L" if picture.mode == "1" else mode
    opaque = not picture.has_transparency_data
    picture = _in_mode(picture, mode if opaque else "RGBA")
    factor = min(side // low for side, low in zip(picture.size, least, strict=True))
    if factor > 1:
        picture = picture.reduce(factor)
    if not opaque:
        canvas = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(canvas, picture).convert("RGB")
    return np.asarray(picture)


def _in_mode(picture: Image.Image, mode: str) -> Image.Image:
    return picture if picture.mode == mode else picture.convert(mode)


def _shrink(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    if pixels.shape[:2] == (height, width):
        return pixels
    times = max(pixels.shape[1] / width, pixels.shape[0] / height)
    method = cv2.INTER_LINEAR if times <= LITTLE else cv2.INTER_AREA
    if LITTLE < times <= 2:
        # Averages over fractions of pixels take twice as long as this, which gives the same.
        pixels = cv2.resize(pixels, (2 * width, 2 * height), interpolation=cv2.INTER_LINEAR)
    return cv2.resize(pixels, (width, height), interpolation=method)


def _to_srgb(pixels: np.ndarray, profile: bytes | None) -> np.ndarray:
    """RGB of RGB or CMYK pixels, by their colour profile if it can be used; grey stays grey."""
    if pixels.ndim == 2:
        return pixels
    mode = "CMYK" if pixels.shape[2] == 4 else "RGB"
    transform = _srgb_transform(profile, mode) if profile else None
    if transform is None and mode == "RGB":
        return pixels
    picture = Image.fromarray(pixels, mode)
    if transform is None:
        return np.asarray(picture.convert("RGB"))
    return np.asarray(ImageCms.applyTransform(picture, transform))


@lru_cache(maxsize=16)
def _srgb_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """None: the profile is sRGB itself, or damaged, or of other colours than the pixels."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return None
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Upright pixels of an EXIF orientation, 1 .. 8."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _encode(pixels: np.ndarray, quality: int) -> bytes:
    if pixels.ndim == 2:
        return simplejpeg.encode_jpeg(pixels[:, :, None], quality, "GRAY", "Gray")
    return simplejpeg.encode_jpeg(pixels, quality, "RGB", "420")
