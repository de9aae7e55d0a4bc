"""`image.resizer: img2dataset` stores what img2dataset itself would have stored, byte for byte."""

import io
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from img2dataset.resizer import Resizer
from PIL import Image

import pipelines.demo
from caft.config import validate
from caft.errors import ConfigError
from pipelines.data.config import DataConfig, ImageConfig
from pipelines.data.images.decoder import Decoder
from pipelines.data.images.img2dataset_resizer import prepare_image
from pipelines.data.images.prepare import ImageRefused, hash_image

FILE = min(Path(pipelines.demo.__file__).with_name("photographs").glob("*.jpg"))
PHOTOGRAPH = Image.open(FILE).convert("RGB")
RGBA = PHOTOGRAPH.convert("RGBA")
RGBA.putalpha(Image.linear_gradient("L").resize(RGBA.size))
SIDEWAYS = Image.Exif()
SIDEWAYS[0x0112] = 6


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


PICTURES = {
    "file": FILE.read_bytes(),
    "jpeg": encoded(PHOTOGRAPH, "JPEG", quality=80, progressive=True),
    "small": encoded(PHOTOGRAPH.resize((50, 70)), "JPEG"),
    "grey": encoded(PHOTOGRAPH.convert("L"), "JPEG"),
    "cmyk": encoded(PHOTOGRAPH.convert("CMYK"), "JPEG"),
    "exif": encoded(PHOTOGRAPH, "JPEG", exif=SIDEWAYS),
    "cut": encoded(PHOTOGRAPH, "JPEG")[:9000],
    "png": encoded(PHOTOGRAPH, "PNG"),
    "alpha": encoded(RGBA, "PNG"),
    "palette": encoded(PHOTOGRAPH.quantize(64), "PNG"),
    "grey png": encoded(PHOTOGRAPH.convert("L"), "PNG"),
    "deep": encoded(Image.fromarray(np.asarray(PHOTOGRAPH.convert("L")).astype("u2") * 257), "PNG"),
    "webp": encoded(PHOTOGRAPH, "WEBP"),
    "webp alpha": encoded(RGBA, "WEBP"),
    "jpeg 2000": encoded(PHOTOGRAPH, "JPEG2000"),
}
SETTINGS = [
    {},
    {"resize_mode": "no"},
    {"resize_mode": "no", "skip_reencode": True},
    {"resize_mode": "keep_ratio", "image_size": 100, "encode_quality": 70},
    {"resize_mode": "keep_ratio", "resize_only_if_bigger": True, "skip_reencode": True},
    {"resize_mode": "center_crop", "image_size": 64, "encode_format": "png", "encode_quality": 9},
    {"resize_mode": "border", "image_size": 600, "upscale_interpolation": "cubic"},
    {"resize_mode": "keep_ratio_largest", "encode_format": "webp", "image_size": 90},
    {"resize_mode": "keep_ratio_largest", "image_size": 90, "downscale_interpolation": "linear"},
    {"min_image_size": 60},
    {"max_image_area": 5000.0},
    {"max_aspect_ratio": 1.45},
]
DEFAULTS = {"image_size": 256, "resize_mode": "border", "resize_only_if_bigger": False}


def refused(work, *arguments) -> tuple[str, str]:
    with pytest.raises(ImageRefused) as refusal:
        work(*arguments)
    return refusal.value.args


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_it_stores_what_img2dataset_would_have_stored(settings):
    theirs = Resizer(**DEFAULTS | settings)
    config = ImageConfig(resizer="img2dataset", **settings)
    stored = 0
    for name, data in PICTURES.items():
        image, width, height, original_width, original_height, said = theirs(io.BytesIO(data))
        if said is not None:
            assert refused(prepare_image, data, config)[1] == said, name
            continue
        row = prepare_image(data, config)
        assert row["image"] == image, name
        assert (row["width"], row["height"]) == (width, height), name
        assert (row["original_width"], row["original_height"]) == (original_width, original_height)
        stored += 1
    assert stored


def test_it_does_so_in_the_stages_own_process():
    settings = {"resize_mode": "center_crop", "image_size": 100}
    theirs = Resizer(**DEFAULTS | settings)
    with Decoder(ImageConfig(resizer="img2dataset", **settings)) as decoder:
        for name in PICTURES.keys() - {"cut"}:
            data = PICTURES[name]
            assert decoder.prepare(data)["image"] == theirs(io.BytesIO(data))[0], name
        assert refused(decoder.prepare, PICTURES["cut"])[0] == "truncated_image"
        for bad in (b"", b"<html>"):
            assert refused(decoder.prepare, bad)[0] == "not_an_image"


def test_what_is_kept_as_it_came_is_bound_by_its_bytes_alone():
    config = ImageConfig(resizer="img2dataset", disable_all_reencoding=True)
    for name in PICTURES.keys() - {"cut"}:
        assert prepare_image(PICTURES[name], config)["image"] == PICTURES[name], name
    assert refused(prepare_image, b"<html>", config)[0] == "not_an_image"
    stuffed = PICTURES["jpeg"] + bytes(2**20)
    for settings in (
        {"disable_all_reencoding": True},
        {"resize_mode": "no", "skip_reencode": True},
    ):
        config = ImageConfig(resizer="img2dataset", **settings)
        assert refused(prepare_image, stuffed, config)[0] == "too_large"
    config = ImageConfig(resizer="img2dataset", resize_mode="no")
    assert len(prepare_image(stuffed, config)["image"]) < 2**20


def test_reasons_are_those_of_the_stage():
    cases = {
        "too_small": {"min_image_size": 10_000},
        "decompression_bomb": {"max_image_area": 100.0},
        "aspect_ratio": {"max_aspect_ratio": 1.01},
    }
    for reason, settings in cases.items():
        config = ImageConfig(resizer="img2dataset", **settings)
        assert refused(prepare_image, PICTURES["jpeg"], config)[0] == reason
    config = ImageConfig(resizer="img2dataset", max_pixels=100)
    assert refused(prepare_image, PICTURES["jpeg"], config)[0] == "decompression_bomb"


def test_borders_and_crops_hide_no_duplicate():
    wanted = hash_image(PICTURES["exif"], ImageConfig())["phash"]
    for mode in ("border", "center_crop"):
        config = ImageConfig(resizer="img2dataset", resize_mode=mode)
        assert prepare_image(PICTURES["exif"], config)["phash"] == wanted


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ({"image_size": 300}, "image_size: only resizer: img2dataset uses it"),
        ({"resizer": "img2dataset", "max_side_px": 300}, "max_side_px: only resizer: caft uses it"),
        ({"resizer": "img2dataset", "encode_format": "png"}, "encode_quality 95: png takes 0 to 9"),
        ({"resizer": "img2dataset", "resize_mode": "crop"}, r"resize_mode: .*'center_crop'"),
        ({"resizer": "Resizer"}, "'caft' or 'img2dataset'"),
    ],
)
def test_a_key_without_effect_is_refused_before_anything_starts(image, said):
    raw = {"output": "/out", "sources": [{"name": "a", "path": "a.csv"}], "image": image}
    with pytest.raises(ConfigError, match=said):
        validate(DataConfig, raw, source="mine.yaml")


def test_infinity_is_no_bound():
    assert ImageConfig(resizer="img2dataset", max_aspect_ratio=math.inf).max_aspect_ratio is None


def test_the_resizer_is_imported_without_the_network():
    code = """
import os, socket
os.environ.pop("NO_ALBUMENTATIONS_UPDATE", None)
def no(*args, **options):
    print("the network is asked")
    raise OSError
socket.socket.connect = socket.getaddrinfo = no
import pipelines.data.images.img2dataset_resizer
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
