"""Complete pictures in files with something odd about them: which are kept, and how."""

import io
import random
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pipelines.data.config import ImageConfig
from pipelines.data.images.decoder import Decoder
from pipelines.data.images.jpeg import repaired
from pipelines.data.images.prepare import ImageRefused, most_bytes, prepare_image
from tests.data.test_images import PHOTOGRAPH, difference, encoded, opened

CONFIG = ImageConfig()
BENIGN = Path(__file__).parents[3] / "shared/cases/data/11_benign_jpeg"
KINDS = [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"subsampling": "4:4:4"}]


def noted(data: bytes) -> bytes:
    """With two bytes between two of its segments."""
    end = 4 + int.from_bytes(data[4:6], "big")
    return data[:end] + b"ab" + data[end:]


ODD = {
    "no end marker": lambda data: data[:-2],
    "half an end marker": lambda data: data[:-1],
    "bytes before the end marker": lambda data: data[:-2] + b"ab" + data[-2:],
    "a blank line before the start": lambda data: b"\r\n" + data,
    "a warning before the start": lambda data: b"<b>Warning</b>: headers already sent\n" + data,
    "bytes between segments": noted,
    "both": lambda data: b"\n" + noted(data)[:-2],
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_complete_picture_with_odd_bytes_is_kept(odd, options, mode):
    if mode == "L" and "subsampling" in options:
        options = {}
    good = encoded(Image.fromarray(PHOTOGRAPH).convert(mode), "JPEG", **options)
    row = prepare_image(ODD[odd](good), CONFIG)
    stored = row["image"]
    assert stored.startswith(b"\xff\xd8\xff")
    assert stored.endswith(b"\xff\xd9")
    assert cv2.imdecode(np.frombuffer(stored, np.uint8), cv2.IMREAD_COLOR) is not None
    assert difference(opened(stored), opened(good)) < 1.5
    assert prepare_image(stored, CONFIG)["image"] == stored


@pytest.mark.parametrize("width", [330, 900])
def test_large_and_turned_ones_are_kept_too(width):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = cv2.resize(PHOTOGRAPH, (width, 2 * width // 3))
    good = encoded(pixels, "JPEG", exif=exif)
    row, plain = prepare_image(good[:-2], CONFIG), prepare_image(good, CONFIG)
    assert row["width"] < row["height"]
    assert difference(opened(row["image"]), opened(plain["image"])) < 1


@pytest.mark.skipif(not BENIGN.exists(), reason="needs the shared cases")
def test_the_known_cases_are_kept():
    for path in sorted(BENIGN.glob("*.jpg")):
        data = path.read_bytes()
        shown = cv2.imdecode(np.frombuffer(data + b"\xff\xd9", np.uint8), cv2.IMREAD_COLOR_RGB)
        assert difference(opened(prepare_image(data, CONFIG)["image"]), shown) < 2, path.name


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_what_really_ends_early_is_refused_with_or_without_an_end_marker(options):
    good = encoded(PHOTOGRAPH, "JPEG", **options)
    scans = [n for n in range(len(good)) if good[n : n + 2] == b"\xff\xda"]
    inside = [good[:end] for end in (len(good) // 2, len(good) * 9 // 10, len(good) - 12)]
    between = [good[:end] for end in scans[1:]]  # all that is there is sound
    for data in [*inside, *between, *(data + b"\xff\xd9" for data in inside)]:
        with pytest.raises(ImageRefused) as refusal:
            prepare_image(b"\n" + data, CONFIG)
        assert refusal.value.args[0] == "truncated_image"


def test_previews_of_other_files_are_no_pictures():
    good = encoded(PHOTOGRAPH, "JPEG")
    for start in (b"%PDF-1.7\n", b"ID3\3\0\0\0\0", b"8BPS\0\1", b"\0\0\0\x18ftypheic"):
        with pytest.raises(ImageRefused) as refusal:
            prepare_image(start + good, CONFIG)
        assert refusal.value.args[0] == "not_an_image"


def test_comments_and_metadata_beyond_a_picture_are_left_out_and_pixels_stay():
    good = encoded(cv2.resize(PHOTOGRAPH, (128, 128)), "JPEG", icc_profile=bytes(500))
    segment = (65_002).to_bytes(2, "big") + bytes(65_000)
    padded = good[:2] + 260 * (b"\xff\xfe" + segment + b"\xff\xe1" + segment) + good[2:]
    stored = prepare_image(padded, CONFIG)["image"]
    assert len(stored) <= len(good)
    assert difference(opened(stored), opened(good)) == 0
    assert opened(stored).info["icc_profile"] == bytes(500)
    assert repaired(good) == good


def ramp(most: int, dtype) -> np.ndarray:
    grey = cv2.cvtColor(PHOTOGRAPH, cv2.COLOR_RGB2GRAY).astype(np.float64)
    grey = (grey - grey.min()) / (grey.max() - grey.min())
    return (grey * most).astype(dtype)


@pytest.mark.parametrize("ending", [".png", ".tif"])
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_few_bits_in_samples_of_16_span_black_to_white(ending, bits, channels):
    grey = ramp(2**bits - 1, np.uint16)
    pixels = grey if channels == 1 else np.dstack([grey, grey // 2, grey // 4])
    if channels == 4:
        pixels = np.dstack([pixels, np.full_like(grey, 2**bits - 1)])
    data = cv2.imencode(ending, pixels)[1].tobytes()
    stored = np.asarray(opened(prepare_image(data, CONFIG)["image"]))
    eight = ramp(255, np.uint8)
    expected = eight if channels == 1 else np.dstack([eight // 4, eight // 2, eight])
    assert stored.shape == expected.shape
    assert difference(stored, expected) < 4


@pytest.mark.parametrize("most", [1.0, 255.0, 7.5])
@pytest.mark.parametrize("channels", [1, 3])
def test_floats_span_black_to_white(most, channels):
    grey = ramp(1, np.float64) * most
    pixels = (grey if channels == 1 else np.dstack([grey] * 3)).astype(np.float32)
    pixels[0, 0] = np.nan
    stored = opened(prepare_image(cv2.imencode(".tif", pixels)[1].tobytes(), CONFIG)["image"])
    assert difference(stored.convert("L"), ramp(255, np.uint8)) < 3


def test_a_large_tiff_of_floats_is_a_bomb_and_a_damaged_one_no_image():
    data = cv2.imencode(".tif", np.zeros((40, 50, 3), np.float32))[1].tobytes()
    with pytest.raises(ImageRefused, match="50 x 40 pixels"):
        prepare_image(data, ImageConfig(max_pixels=1_000))
    with pytest.raises(ImageRefused) as refusal:
        prepare_image(data[:-5000], CONFIG)
    assert refusal.value.args[0] in ("not_an_image", "truncated_image")


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_a_picture_that_fades_in_is_stored_where_it_shows_something(kind):
    frames = [Image.fromarray((PHOTOGRAPH * share).astype(np.uint8)) for share in (0, 0.05, 0.5, 1)]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], lossless=True)
    row = prepare_image(buffer.getvalue(), CONFIG)
    assert difference(opened(row["image"]), PHOTOGRAPH) < 8
    half = buffer.getvalue()[: len(buffer.getvalue()) * 19 // 20]
    if kind == "GIF":  # its last frame is cut off
        assert prepare_image(half, CONFIG)["contrast"] > 10


def mutated(good: bytes, chance: random.Random) -> bytes:
    """A file with bits turned, bytes cut out, put in or doubled, or its end cut off."""
    bad = bytearray(good)
    for _ in range(chance.choice((1, 2, 8, 40))):
        at = chance.randrange(min(len(bad), chance.choice((60, 700, len(bad)))))
        match chance.randrange(5):
            case 0:
                bad[at] ^= 1 << chance.randrange(8)
            case 1:
                bad[at : at + 4] = chance.choice(
                    (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0" * 4)
                )
            case 2:
                del bad[at : at + chance.randrange(1, 40)]
            case 3:
                bad[at:at] = chance.randbytes(chance.randrange(1, 40))
            case _:
                bad[at:at] = bad[at : at + chance.randrange(1, 2000)]
        bad = bad or bytearray(b"\0")
    return bytes(bad[: chance.randrange(1, len(bad) + 1)] if chance.random() < 0.2 else bad)


def test_no_picture_costs_more_than_its_row():
    """In time and memory too: the decoding process is bounded, and none of these ends it."""
    chance = random.Random(20)
    small = Image.fromarray(cv2.resize(PHOTOGRAPH, (96, 64)))
    grey = np.asarray(small.convert("L")).astype(np.uint16) * 16
    good = [encoded(small, kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")]
    good += [encoded(small, "JPEG", **options) for options in KINDS[1:]]
    good += [
        encoded(small, "TIFF", compression=name) for name in ("tiff_lzw", "tiff_adobe_deflate")
    ]
    good += [cv2.imencode(end, grey)[1].tobytes() for end in (".png", ".tif")]
    good.append(cv2.imencode(".tif", np.dstack([grey] * 3).astype(np.float32))[1].tobytes())
    config = ImageConfig(max_pixels=10**6, decode_timeout_s=10)
    slowest, outcomes = 0.0, Counter()
    with Decoder(config) as decoder:
        for _ in range(50):
            for data in good:
                bad = mutated(data, chance)
                started = time.perf_counter()
                try:
                    row = decoder.prepare(bad)
                except ImageRefused as refusal:
                    outcomes[refusal.args[0]] += 1
                else:
                    outcomes["kept"] += 1
                    assert len(row["image"]) <= most_bytes(row["width"], row["height"])
                    assert opened(row["image"]).size == (row["width"], row["height"])
                slowest = max(slowest, time.perf_counter() - started)
    assert set(outcomes) <= {"kept", "not_an_image", "truncated_image", "decompression_bomb"}
    assert outcomes["kept"] > 50
    assert slowest < 10
