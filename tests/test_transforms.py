"""Images and their label maps through the same crops, flips and sizes."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from caft.errors import DataError
from caft.preprocessing import eval_image
from caft.transforms import decode_image, eval_labels, random_window, train_image

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden" / "training_crops.json"
CELL = 40
COLOURS = np.random.default_rng(0).integers(0, 256, (12, 3), dtype=np.uint8)


def painted(scale: int = 1) -> tuple[bytes, np.ndarray]:
    """A 120 x 160 picture whose colours say its label, and the label map at 1/scale of its size."""
    labels = np.arange(12).reshape(3, 4).repeat(CELL, 0).repeat(CELL, 1)
    pixels = cv2.cvtColor(COLOURS[labels], cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", pixels)[1].tobytes(), labels[::scale, ::scale]


def agreement(image: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of pixels whose colour is nearest to that of their label."""
    pixels = image.permute(1, 2, 0).numpy()[:, :, None].astype(int)
    nearest = np.abs(pixels - COLOURS).sum(axis=-1).argmin(axis=-1)
    return float((nearest == labels.numpy()).mean())


@pytest.mark.parametrize("scale", [1, 2, 5])
@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("min_scale", [1.0, 0.3])
def test_labels_stay_with_their_pixels(scale, flip, min_scale):
    data, labels = painted(scale)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        image, cut = train_image(data, 96, min_scale, rng, labels, flip)
        assert cut.shape == (96, 96)
        assert agreement(image, cut) > (0.97 if scale == 1 else 0.9)
    image = eval_image(data, 96, "squash")
    assert agreement(image, eval_labels(labels, 96)) > (0.97 if scale == 1 else 0.9)


def test_a_flip_mirrors_both():
    data, labels = painted()
    image, cut = train_image(data, 96, 1.0, np.random.default_rng(0), labels)
    mirrored, mirrored_cut = train_image(data, 96, 1.0, np.random.default_rng(0), labels, 1.0)
    assert torch.equal(mirrored, image.flip(-1))
    assert torch.equal(mirrored_cut, cut.flip(-1))
    flips = [
        torch.equal(train_image(data, 96, 1.0, np.random.default_rng(n), None, 0.5)[0], mirrored)
        for n in range(60)
    ]
    assert 15 < sum(flips) < 45


def test_a_crop_is_the_same_with_and_without_labels():
    data, labels = painted()
    with_labels, _ = train_image(data, 64, 0.5, np.random.default_rng(5), labels)
    without, none = train_image(data, 64, 0.5, np.random.default_rng(5))
    assert none is None
    assert torch.equal(with_labels, without)


def test_a_map_of_the_right_size_is_kept_as_it_is():
    labels = np.random.default_rng(0).integers(0, 196, (224, 224))
    assert torch.equal(eval_labels(labels, 224), torch.from_numpy(labels))


@pytest.mark.parametrize(("width", "height"), [(384, 288), (512, 384), (500, 490), (1100, 950)])
@pytest.mark.parametrize("channels", [1, 3])
def test_fast_decoding_shows_the_crop_that_full_decoding_does(width, height, channels):
    rng = np.random.default_rng(width)
    coarse = rng.integers(0, 256, (height // 32, width // 32, channels), dtype=np.uint8)
    pixels = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(float)
    pixels = pixels.reshape(height, width, channels) + rng.normal(0, 4, (height, width, 1))
    data = cv2.imencode(".jpg", pixels.clip(0, 255).astype(np.uint8))[1].tobytes()
    labels = np.arange(width * height).reshape(height, width)  # say where a pixel comes from
    full = decode_image(data)
    for seed in range(4):
        crop, places = train_image(data, 224, 0.9, np.random.default_rng(seed), labels)
        corners = places[0, 0].item(), places[-1, -1].item()
        (top, left), (bottom, right) = (divmod(place, width) for place in corners)
        edge = (bottom - top) / 223 / 2, (right - left) / 223 / 2  # half of what a pixel covers
        window = full[
            round(top + 0.5 - edge[0]) : round(bottom + 0.5 + edge[0]),
            round(left + 0.5 - edge[1]) : round(right + 0.5 + edge[1]),
        ]
        whole = cv2.resize(window, (224, 224), interpolation=cv2.INTER_AREA)
        assert cv2.PSNR(np.ascontiguousarray(crop.permute(1, 2, 0).numpy()), whole) > 35


def test_a_picture_in_two_formats_gives_one_crop():
    coarse = np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    pixels = cv2.resize(coarse, (1000, 800), interpolation=cv2.INTER_CUBIC)
    jpeg = cv2.imencode(".jpg", pixels)[1]
    png = cv2.imencode(".png", cv2.imdecode(jpeg, cv2.IMREAD_COLOR))[1]
    for seed in range(4):
        crops = [
            train_image(file.tobytes(), 224, 0.5, np.random.default_rng(seed))[0].numpy()
            for file in (jpeg, png)
        ]
        assert cv2.PSNR(*(np.ascontiguousarray(one.transpose(1, 2, 0)) for one in crops)) > 35


def test_a_damaged_jpeg_is_no_image():
    data = cv2.imencode(".jpg", np.zeros((300, 300, 3), np.uint8))[1].tobytes()
    with pytest.raises(DataError, match="cannot be decoded"):
        train_image(data[:20], 224, 0.9, np.random.default_rng(0))


def test_bytes_that_are_no_image():
    with pytest.raises(DataError, match="image of 8 bytes cannot be decoded"):
        decode_image(b"no image")


RATIO = (3 / 4, 4 / 3)
QUANTILES = (0, 5, 25, 50, 75, 95, 100)


@pytest.mark.skipif(not GOLDEN.exists(), reason="reference crops are not here")
def test_crops_have_the_published_areas_shapes_and_places():
    for size, expected in json.loads(GOLDEN.read_text())["images"].items():
        width, height = map(int, size.split("x"))
        rng = np.random.default_rng(0)
        windows = [random_window(height, width, 0.9, RATIO, rng) for _ in range(20_000)]
        _, left, crop_h, crop_w = np.array(windows).T
        room = width - crop_w
        found = {
            "width_over_height": crop_w / crop_h,
            "area_share": crop_w * crop_h / (width * height),
            "left_share_of_room": np.where(room > 0, left / np.maximum(room, 1), 0.5),
        }
        for name, values in found.items():
            tolerance = 0.02 if name == "left_share_of_room" else 0.003
            np.testing.assert_allclose(
                np.percentile(values, QUANTILES), expected[name], atol=tolerance
            )
        assert found["area_share"].mean() == pytest.approx(expected["area_mean"], abs=0.001)


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (900, 1), (30, 40), (300, 4000)])
def test_a_crop_of_the_published_shapes_lies_in_any_picture(shape):
    height, width = shape
    for seed in range(20):
        top, left, crop_h, crop_w = random_window(
            height, width, 0.9, RATIO, np.random.default_rng(seed)
        )
        assert 0 <= top <= top + crop_h <= height
        assert 0 <= left <= left + crop_w <= width
        assert crop_h > 0 < crop_w
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    data = cv2.imencode(".png", pixels)[1].tobytes()
    picture, _ = train_image(data, 32, 0.9, np.random.default_rng(0), ratio=RATIO)
    assert picture.shape == (3, 32, 32)


def test_published_crops_are_resized_as_pillow_does():
    pixels = cv2.resize(
        np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8), (400, 300)
    )
    data = cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()
    for seed in range(4):
        top, left, h, w = random_window(300, 400, 0.9, RATIO, np.random.default_rng(seed))
        crop = Image.fromarray(pixels[top : top + h, left : left + w])
        expected = np.asarray(crop.resize((224, 224), Image.Resampling.BICUBIC))
        picture, _ = train_image(data, 224, 0.9, np.random.default_rng(seed), ratio=RATIO)
        difference = np.abs(picture.permute(1, 2, 0).numpy().astype(int) - expected)
        assert difference.max() <= 5
        assert difference.mean() < 0.05


@pytest.mark.parametrize(("width", "mapped"), [(480, True), (640, True), (720, True), (860, False)])
def test_a_map_of_the_whole_picture_serves_crops_that_show_nearly_all_of_it(width, mapped):
    """Of a picture longer than 3:2 the published crop cuts a sixth and more away."""
    labels = np.arange(12).reshape(3, 4).repeat(160, 0).repeat(width // 4, 1)
    data = cv2.imencode(".png", cv2.cvtColor(COLOURS[labels], cv2.COLOR_RGB2BGR))[1].tobytes()
    for seed in range(6):
        image, cut = train_image(data, 96, 0.9, np.random.default_rng(seed), labels, ratio=RATIO)
        assert (cut is not None) == mapped
        if mapped:
            assert agreement(image, cut) > 0.97
        assert train_image(data, 96, 0.9, np.random.default_rng(seed), labels)[1] is not None
