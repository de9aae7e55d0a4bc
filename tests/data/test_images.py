"""One image: what is kept as it came, what is made anew, and that damage never surprises."""

import hashlib
import io
import random
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

import pipelines.demo
from caft.transforms import decode_image
from pipelines.data.config import ImageConfig
from pipelines.data.images.prepare import ImageRefused, hash_image, prepare_image

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged files
CONFIG = ImageConfig()
PHOTOGRAPHS = Path(pipelines.demo.__file__).with_name("photographs")
PHOTOGRAPH = np.asarray(Image.open(min(PHOTOGRAPHS.glob("*.jpg"))).convert("RGB"))


def encoded(pixels, kind, **options) -> bytes:
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def enlarged(width: int, height: int) -> np.ndarray:
    return cv2.resize(PHOTOGRAPH, (width, height), interpolation=cv2.INTER_CUBIC)


def opened(data: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture


def difference(one, other) -> float:
    """Mean absolute difference of two pictures in grey levels."""
    return np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).mean()


def bits(one: int, other: int) -> int:
    return (one ^ other).bit_count()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"subsampling": "4:4:4"}),
        ("JPEG", {"keep_rgb": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_what_every_reader_shows_alike_is_kept_as_it_came(kind, options, mode):
    data = encoded(Image.fromarray(PHOTOGRAPH).convert(mode), kind, **options)
    row = prepare_image(data, CONFIG)
    height, width = PHOTOGRAPH.shape[:2]
    assert row["image"] == data
    assert (row["width"], row["height"]) == (width, height)
    assert (row["original_width"], row["original_height"]) == (width, height)
    assert row["sha256"] == hashlib.sha256(data).hexdigest()
    assert row["contrast"] == pytest.approx(44, abs=2)
    assert 0 <= row["phash"] < 2**64


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF"])
@pytest.mark.parametrize("size", [(640, 430), (1000, 667), (1300, 300), (4400, 1500)])
def test_large_images_are_shrunk_to_the_longest_side(kind, size):
    pixels = enlarged(*size)
    row = prepare_image(encoded(pixels, kind), CONFIG)
    assert (row["original_width"], row["original_height"]) == size
    stored = opened(row["image"])
    assert stored.format == "JPEG"
    assert stored.size == (row["width"], row["height"])
    assert row["width"] == 512
    assert abs(row["height"] - 512 * size[1] / size[0]) <= 1
    expected = Image.fromarray(pixels).resize(stored.size, Image.Resampling.LANCZOS)
    assert difference(stored, expected) < (8 if kind == "GIF" else 4)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("width", [400, 900])
def test_images_are_stored_upright_and_without_metadata(orientation, kind, width):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(enlarged(width, width * 2 // 3))
    data = encoded(picture, kind, exif=exif)
    row = prepare_image(data, CONFIG)
    shown = ImageOps.exif_transpose(opened(data))
    assert (row["original_width"], row["original_height"]) == shown.size
    stored = opened(row["image"])
    assert stored.size == (row["width"], row["height"])
    assert difference(stored, shown.resize(stored.size, Image.Resampling.BOX)) < 4
    assert stored.getexif().get(0x0112, 1) == 1
    assert (row["image"] == data) == (orientation == 1 and width == 400 and kind != "TIFF")


def rgba(picture: Image.Image) -> Image.Image:
    result = picture.convert("RGBA")
    result.paste((0, 0, 0, 0), (0, 0, result.width // 2, result.height))
    return result


@pytest.mark.parametrize("width", [300, 1200])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_what_is_transparent_is_put_on_white(kind, width):
    data = encoded(rgba(Image.fromarray(enlarged(width, width * 2 // 3))), kind)
    row = prepare_image(data, CONFIG)
    stored = np.asarray(opened(row["image"]))
    half = row["width"] // 2
    assert stored[:, : half - 8].min() > 245
    expected = cv2.resize(PHOTOGRAPH, (row["width"], row["height"]), interpolation=cv2.INTER_AREA)
    assert difference(stored[:, half + 8 :], expected[:, half + 8 :]) < 8


def test_the_first_frame_of_a_moving_picture_is_stored():
    frames = [Image.fromarray(PHOTOGRAPH), Image.fromarray(255 - PHOTOGRAPH)]
    for kind in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        stored = opened(prepare_image(data, CONFIG)["image"])
        assert stored.format == "JPEG"
        assert difference(stored, PHOTOGRAPH) < 6


def test_other_kinds_of_pixels_become_8_bit_rgb_or_grey():
    picture = Image.fromarray(PHOTOGRAPH)
    grey = np.asarray(picture.convert("L"))
    deep = cv2.imencode(".png", PHOTOGRAPH[:, :, ::-1].astype(np.uint16) * 257)[1].tobytes()
    cases = {
        "CMYK JPEG": (encoded(picture.convert("CMYK"), "JPEG"), PHOTOGRAPH),
        "CMYK TIFF": (encoded(picture.convert("CMYK"), "TIFF"), PHOTOGRAPH),
        "palette": (encoded(picture.quantize(256), "PNG"), PHOTOGRAPH),
        "16-bit RGB": (deep, PHOTOGRAPH),
        "16-bit grey": (encoded(grey.astype(np.uint16) * 257, "PNG"), grey),
        "1 bit": (encoded(Image.fromarray(grey > 99), "PNG"), (grey > 99) * 255),
        "LA": (encoded(picture.convert("LA"), "PNG"), np.stack([grey] * 3, axis=-1)),
        "BMP": (encoded(picture, "BMP"), PHOTOGRAPH),
        "AVIF": (encoded(picture, "AVIF"), PHOTOGRAPH),
    }
    for name, (data, expected) in cases.items():
        stored = opened(prepare_image(data, CONFIG)["image"])
        assert (stored.format, stored.mode) == ("JPEG", "RGB" if expected.ndim == 3 else "L"), name
        assert difference(stored, expected) < 6, name
        assert bits(prepare_image(data, CONFIG)["phash"], hash_of(expected)) <= 8, name


def hash_of(pixels: np.ndarray) -> int:
    return prepare_image(encoded(np.uint8(pixels), "PNG"), CONFIG)["phash"]


def test_colours_of_another_profile_become_those_of_srgb():
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    bgr = swapped_primaries()
    data = encoded(enlarged(800, 500), "JPEG", icc_profile=bgr)
    stored = opened(prepare_image(data, CONFIG)["image"])
    plain = opened(prepare_image(encoded(enlarged(800, 500), "JPEG"), CONFIG)["image"])
    assert "icc_profile" not in stored.info
    assert difference(stored, plain) > 10
    for unusable in (lab, b"no profile at all", bgr[:200]):
        data = encoded(enlarged(800, 500), "JPEG", icc_profile=unusable)
        assert difference(opened(prepare_image(data, CONFIG)["image"]), plain) < 1


def swapped_primaries() -> bytes:
    """An RGB profile that takes red for green: sRGB with two of its tags exchanged."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    marks = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ"}
    count = struct.unpack_from(">I", profile, 128)[0]
    table = bytearray(profile.replace("sRGB".encode("utf-16-be"), "xxxx".encode("utf-16-be")))
    for at in range(132, 132 + 12 * count, 12):
        name = bytes(table[at : at + 4])
        table[at : at + 4] = marks.get(name, name)
    return bytes(table)


def test_bombs_are_refused_from_their_header():
    config = ImageConfig(max_pixels=1000 * 1000)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"):
        data = encoded(np.zeros((1001, 1000), np.uint8), kind)
        with pytest.raises(ImageRefused) as refusal:
            prepare_image(data, config)
        assert refusal.value.args == ("decompression_bomb", "1000 x 1001 pixels")
    huge = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    header = b"IHDR" + huge
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header
    png += struct.pack(">I", zlib.crc32(header))
    png += struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    with pytest.raises(ImageRefused, match="60000 x 60000"):
        prepare_image(png, CONFIG)


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"<!doctype html><title>Not found</title>", b"%PDF-1.7"]
)
def test_what_is_no_image_is_refused(data):
    with pytest.raises(ImageRefused) as refusal:
        prepare_image(data, CONFIG)
    assert refusal.value.args[0] == "not_an_image"


@pytest.mark.parametrize("width", [320, 700])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"mode": "L"}, {"mode": "CMYK"}])
def test_a_jpeg_that_ends_early_is_refused_wherever_it_ends(width, options):
    picture = Image.fromarray(enlarged(width, width // 2))
    mode = options.get("mode", "RGB")
    data = encoded(picture.convert(mode), "JPEG", progressive=options.get("progressive", False))
    for end in [*range(0, len(data) - 12, len(data) // 60), len(data) - 12]:
        with pytest.raises(ImageRefused) as refusal:
            prepare_image(data[:end], CONFIG)
        assert refusal.value.args[0] in ("not_an_image", "truncated_image")
    with pytest.raises(ImageRefused) as refusal:
        prepare_image(data[: len(data) // 2], CONFIG)
    assert refusal.value.args[0] == "truncated_image"


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "AVIF", "BMP"])
def test_other_files_that_end_early_are_refused_too(kind):
    data = encoded(PHOTOGRAPH, kind)
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(ImageRefused) as refusal:
            prepare_image(data[: int(share * len(data))], CONFIG)
        assert refusal.value.args[0] == ("not_an_image" if kind == "AVIF" else "truncated_image")


def test_bytes_after_a_whole_jpeg_do_no_harm():
    data = encoded(PHOTOGRAPH, "JPEG")
    padded = data + b"trailing bytes" * 9
    assert prepare_image(padded, CONFIG)["image"] == padded


@given(st.binary(max_size=300), st.sampled_from([b"", b"\xff\xd8\xff", b"GIF89a", b"II*\0", b"BM"]))
def test_no_bytes_raise_anything_else(data, start):
    _survives(start + data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF", "BMP"])
def test_no_damage_raises_anything_else(kind):
    chance = random.Random(kind)
    exif = Image.Exif()
    exif[0x0112] = 6
    small = Image.fromarray(enlarged(90, 60))
    for good in (encoded(small, kind), encoded(small.convert("L"), kind, exif=exif)):
        for _ in range(150):
            bad = bytearray(good)
            for _ in range(chance.choice((1, 1, 2, 8))):
                # Headers lie at the front, where a flip goes furthest.
                end = chance.choice((60, 700, len(bad)))
                bad[chance.randrange(min(end, len(bad)))] ^= 1 << chance.randrange(8)
            if chance.random() < 0.3:
                bad = bad[: chance.randrange(len(bad))]
            _survives(bytes(bad))


def _survives(data: bytes) -> None:
    try:
        row = prepare_image(data, ImageConfig(max_pixels=10**6))
    except ImageRefused as refusal:
        reason, detail = refusal.args
        assert reason in ("not_an_image", "truncated_image", "decompression_bomb")
        assert len(detail) <= 200
        assert "\n" not in detail
    else:
        # Sorted: of damaged EXIF readers may take different turns.
        shape = sorted(decode_image(row["image"]).shape[:2])
        assert shape == sorted((row["height"], row["width"]))


def test_damaged_metadata_is_no_reason_to_refuse_a_picture():
    for exif in (b"Exif\0\0II", b"Exif\0\0nonsense", b"Exif\0\0" + bytes(50)):
        row = prepare_image(encoded(PHOTOGRAPH, "JPEG", exif=exif), CONFIG)
        assert difference(opened(row["image"]), PHOTOGRAPH) < 6


def test_equal_bytes_give_equal_rows():
    data = encoded(enlarged(900, 700), "JPEG")
    assert prepare_image(data, CONFIG) == prepare_image(data, CONFIG)


def test_copies_of_a_photograph_have_near_hashes_and_others_far_ones():
    hashes, wrong = [], 0
    for path in sorted(PHOTOGRAPHS.glob("*.jpg"))[::3]:
        original = path.read_bytes()
        pixels = np.asarray(opened(original).convert("RGB"))
        height, width = pixels.shape[:2]
        half = cv2.resize(pixels, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        large = cv2.resize(pixels, (width * 3, height * 3), interpolation=cv2.INTER_CUBIC)
        hashes.append(prepare_image(original, CONFIG)["phash"])
        for copy in (
            encoded(pixels, "JPEG", quality=50),
            encoded(half, "JPEG", quality=75),
            encoded(large, "JPEG", quality=85),
            encoded(pixels, "WEBP", quality=60),
        ):
            wrong += bits(hashes[-1], prepare_image(copy, CONFIG)["phash"]) > 2
        mirrored = hash_image(encoded(pixels[:, ::-1], "JPEG", quality=85), CONFIG)
        assert bits(hashes[-1], mirrored["mirrored_phash"]) <= 4
        assert bits(hashes[-1], mirrored["phash"]) > 16
    assert wrong <= 0.02 * 4 * len(hashes)
    assert min(bits(a, b) for n, a in enumerate(hashes) for b in hashes[:n]) > 16


def test_contrast_tells_blank_images():
    assert prepare_image(encoded(np.full((99, 99), 7, np.uint8), "PNG"), CONFIG)["contrast"] == 0
    halves = np.zeros((99, 100), np.uint8)
    halves[:, 50:] = 255
    assert prepare_image(encoded(halves, "PNG"), CONFIG)["contrast"] == pytest.approx(127.5, abs=1)


def test_a_picture_padded_with_comments_is_stored_without_them():
    plain = encoded(enlarged(128, 128), "JPEG")
    comment = b"\xff\xfe" + (65_002).to_bytes(2, "big") + bytes(65_000)
    padded = plain[:2] + comment * 260 + plain[2:]
    assert len(padded) > 16e6
    row = prepare_image(padded, CONFIG)
    assert len(row["image"]) < 4 * 128 * 128
    assert (row["width"], row["height"]) == (128, 128)
    assert bits(prepare_image(plain, CONFIG)["phash"], row["phash"]) <= 2
    few = plain[:2] + comment[:2] + b"\x00\x08hello!" + plain[2:]
    assert prepare_image(few, CONFIG)["image"] == few
