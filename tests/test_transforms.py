"""Images and their label maps through the same crops, flips and sizes."""

import cv2
import numpy as np
import pytest
import torch

from caft.errors import DataError
from caft.preprocessing import eval_image
from caft.transforms import decode_image, eval_labels, train_image

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
