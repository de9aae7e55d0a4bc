"""One downloaded image into what is stored: checked, shrunk if large, measured and hashed.
The chunk step calls it for every row, through decoder.py, so it imports no torch and no Ray."""

from __future__ import annotations

import hashlib
import io
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageCms, UnidentifiedImageError

from pipelines.data.images.formats import FORMATS

if TYPE_CHECKING:
    from pipelines.data.config import ImageConfig


JPEG_FORMATS = ("JPEG", "MPO")  # MPO: a JPEG file with further pictures behind the first
STORED_FORMATS = (*JPEG_FORMATS, "PNG", "WEBP")
PLAIN_MODES = ("RGB", "L")
PNG_BIT_DEPTH_AT = 24
ORIENTATION_MARKS = (b"eXIf", b"EXIF", b"tiff:Orientation")  # of PNG, of WEBP, of XMP
EXIF_ORIENTATION, UPRIGHT = 0x0112, 1
HASHED_SIDE_PX = 64  # a JPEG that is kept as it came is decoded no further than to this
UNUSUAL = "subsampling level"  # of colours, which libjpeg decodes and its short interface does not
LITTLE = 1.25  # shrunk less, linear interpolation is as good as averaging, and five times as fast
MAX_DETAIL_CHARS = 200
# More than the pixels take without compression, and room for a colour profile and small EXIF data.
STORED_BYTES_PER_PIXEL, STORED_EXTRA_BYTES = 4, 2**16

Image.MAX_IMAGE_PIXELS = None  # config.max_pixels decides, before anything is decoded
SIDE_PX, FREQUENCIES = 32, 8
# Products of whole numbers below 2**53 are exact in float64, so that every machine and every
# linear algebra library gives the same hash.
BASIS_SCALE = 2**14
PLACES = 1 << np.arange(FREQUENCIES**2, dtype=np.uint64)[::-1]


class ImageRefused(Exception):
    """An image that is not kept: reject reason and detail."""

    def __init__(self, reason: str, detail: object) -> None:
        super().__init__(reason, " ".join(str(detail).split())[:MAX_DETAIL_CHARS])


def prepare_image(data: bytes, config: ImageConfig) -> dict[str, Any]:
    """What is stored of an encoded image.

    JPEG, PNG and WEBP files that are small enough, upright, opaque and of 8 bits stay as they
    came. All else becomes a JPEG without metadata, its colours those of sRGB: shrunk, turned as
    its EXIF says, on white where it is transparent, the first frame where it moves.

    Returns:
        image (bytes), width and height of it; original_width and original_height of `data` as
        shown, that is after turning; sha256 (hex) of `data`; phash (64 bits); contrast, the
        standard deviation of grey levels of a 32-px version (0 .. 127).

    Raises:
        ImageRefused: whatever else is wrong with the bytes.
    """
    return guarded(_prepare, data, config)


def hash_image(data: bytes, config: ImageConfig) -> dict[str, Any]:
    """phash of an encoded image, and mirrored_phash, that of the image mirrored left and right.

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
    width, height = picture.size
    if orientation >= 5:
        width, height = height, width
    grey = small_grey(pixels)
    result = {
        "image": data,
        "width": width,
        "height": height,
        "original_width": width,
        "original_height": height,
        "sha256": hashlib.sha256(data).hexdigest(),
        "phash": perceptual_hash(grey),
        "contrast": float(cv2.meanStdDev(grey)[1][0, 0]),
    }
    if not stored:
        result |= {
            "image": _encode(pixels, config.jpeg_quality),
            "width": pixels.shape[1],
            "height": pixels.shape[0],
        }
    return result


def _hash(data: bytes, config: ImageConfig) -> dict[str, Any]:
    grey = upright_grey(data, config)
    return {"phash": perceptual_hash(grey), "mirrored_phash": perceptual_hash(grey[:, ::-1])}


def upright_grey(data: bytes, config: ImageConfig) -> np.ndarray:
    """`small_grey` of an encoded image as it is shown. Raises nearly anything."""
    return small_grey(_decode(open_picture(data, config), data, config.max_side_px)[0])


def open_picture(data: bytes, config: ImageConfig) -> Image.Image:
    """The picture with its header read and its pixels not.

    Raises:
        ImageRefused: not in one of FORMATS, or more than `max_pixels`.
    """
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ImageRefused("not_an_image", f"starts with {data[:16]!r}") from None
    width, height = picture.size
    if width * height > config.max_pixels:
        raise ImageRefused("decompression_bomb", f"{width} x {height} pixels")
    return picture


def _decode(picture: Image.Image, data: bytes, max_side_px: int) -> tuple[np.ndarray, int, bool]:
    """Pixels, EXIF orientation, and whether the file is stored as it came.

    Pixels are grey (H, W) or RGB (H, W, 3), upright, no longer than `max_side_px`; those of a
    JPEG file that is stored as it came are smaller and grey, enough for its hash.
    """
    is_jpeg = picture.format in JPEG_FORMATS
    plain = None if is_jpeg else _decode_plain(picture, data)
    if not is_jpeg and plain is None:
        picture.load()
    orientation = UPRIGHT if plain is not None else _orientation(picture)
    longest = max(picture.size)
    whole = plain is not None or (is_jpeg and picture.mode in PLAIN_MODES)
    stored = whole and longest <= max_side_px and orientation == UPRIGHT
    # A file that holds far more than a picture, such as megabytes of comments, is written anew.
    stored = stored and len(data) <= most_bytes(*picture.size)
    if stored and is_jpeg:
        grey = _decode_jpeg(picture, data, "L", (HASHED_SIDE_PX, HASHED_SIDE_PX))
        return grey, orientation, True
    if longest > max_side_px:  # rounded up, as libjpeg does where it shrinks
        width, height = (-(-side * max_side_px // longest) for side in picture.size)
    else:
        width, height = picture.size
    if is_jpeg:
        pixels = _decode_jpeg(picture, data, picture.mode, (width, height))
    elif plain is not None:
        pixels = plain
    else:
        pixels = _pixels(picture, (width, height))
    if stored:
        return pixels, orientation, True
    pixels = _to_srgb(_shrink(pixels, width, height), picture.info.get("icc_profile"))
    return _turn(pixels, orientation), orientation, False


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
    deep = picture.format == "PNG" and data[PNG_BIT_DEPTH_AT] != 8
    moves = getattr(picture, "is_animated", False)
    turned = any(mark in data for mark in ORIENTATION_MARKS) and _orientation(picture) != UPRIGHT
    if deep or moves or turned or picture.has_transparency_data:
        return None
    flags = cv2.IMREAD_COLOR_RGB if picture.mode == "RGB" else cv2.IMREAD_GRAYSCALE
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)


def _decode_jpeg(
    picture: Image.Image, data: bytes, mode: str, least: tuple[int, int]
) -> np.ndarray:
    """Pixels of a JPEG file in a mode of Pillow's, shrunk by a power of two while they are decoded
    if they stay at least of the size `least`, width and height."""
    colours = {"L": "GRAY"}.get(mode, mode)
    factor = 8
    while factor > 1 and any(
        -(-side // factor) < low for side, low in zip(picture.size, least, strict=True)
    ):
        factor //= 2

    width, height = (-(-side // factor) for side in picture.size)
    try:
        pixels = simplejpeg.decode_jpeg(data, colours, min_width=width, min_height=height)
    except ValueError as error:  # of warnings too: the picture is damaged
        if UNUSUAL not in str(error):
            raise
        return np.asarray(picture.convert(mode))
    if mode == "CMYK":
        return 255 - pixels  # all write it as Adobe does, inverted
    return pixels[:, :, 0] if mode == "L" else pixels


def _pixels(picture: Image.Image, least: tuple[int, int]) -> np.ndarray:
    """Grey, RGB or CMYK pixels of a picture that is loaded, averaged by a whole number if they stay
    at least of the size `least`: memory then holds few large copies."""
    if picture.mode.startswith("I"):  # 16 bits
        picture = Image.fromarray((np.asarray(picture).clip(0, 2**16 - 1) >> 8).astype(np.uint8))
    mode = picture.mode if picture.mode in ("L", "RGB", "CMYK") else "RGB"
    mode = "L" if picture.mode in ("1", "F") else mode
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


def small_grey(pixels: np.ndarray) -> np.ndarray:
    """The whole of an image, grey (H, W) or RGB (H, W, 3), as uint8 (32, 32)."""
    grey = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA)


def perceptual_hash(grey: np.ndarray) -> int:
    """64-bit hash of `small_grey`'s result: which of its 8 x 8 lowest frequencies are above
    their median. The hash of the mirrored image is that of `grey[:, ::-1]`."""
    frequencies = (BASIS @ grey @ BASIS.T).ravel()
    median = np.partition(frequencies, len(frequencies) // 2 - 1)[len(frequencies) // 2 - 1]
    return int(PLACES[frequencies > median].sum())


def _basis() -> np.ndarray:
    """Rows of the cosine transform (8, 32), as whole numbers."""
    places = (2 * np.arange(SIDE_PX) + 1) / (2 * SIDE_PX)
    waves = np.cos(np.pi * np.arange(FREQUENCIES)[:, None] * places)
    waves[0] /= np.sqrt(2)
    return np.round(BASIS_SCALE * waves)


BASIS = _basis()
