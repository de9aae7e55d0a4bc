"""Superpixels of every method through one door: how many, of any image size, stored or computed."""

import cv2
import numpy as np
import pytest
import torch
from tests_support import random_images, tiny_config

import caft
from caft.config import ImageConfig, SuperpixelConfig, load_model_config
from caft.errors import ConfigError, DataError
from caft.preprocessing import eval_image
from caft.superpixels import cell_grid, encode_superpixels, stored_labels, superpixel_labels
from caft.superpixels.stored import (
    LabelMapHeader,
    encode_label_map,
    label_map_header,
    shrink_labels,
)
from caft.transforms import eval_labels, normalise, train_image
from pipelines.demo.scenes import SceneConfig, render_scene
from pipelines.superpixel_columns import complete_superpixels, pack_superpixels, unpack_superpixels

METHODS = ("sfcn", "seeds", "grid")


def model_with(method: str):
    """A tiny CAFT on 96-px images cut into cells of 16 px."""
    superpixels = SuperpixelConfig(method=method)
    image = tiny_config().image.model_dump() | {"image_size_px": 96, "superpixels": superpixels}
    torch.manual_seed(0)
    return caft.create_model(tiny_config(image=ImageConfig(**image))).eval()


def photograph(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """One uint8 image (1, 3, height, width) of large smooth patches."""
    coarse = random_images(1, 64, seed).float()
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").byte()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(96, 96), (64, 144), (160, 48), (75, 131), (33, 300)])
def test_an_image_of_any_size_is_cut_into_one_superpixel_per_whole_cell(method, size):
    model = model_with(method)
    features = model.encode_image(photograph(*size))
    count = (size[0] // 16) * (size[1] // 16)
    labels = features.superpixels
    assert labels.shape == (1, *size)
    assert labels.min() >= 0
    assert labels.max() < count
    assert features.assignments[0].shape == (1, count, 8)
    assert torch.isfinite(features.whole).all()
    heat = caft.localize(model, photograph(*size)[0].permute(1, 2, 0).numpy(), ["a red dog"])
    assert heat.shape == (1, *size)


@pytest.mark.parametrize("method", METHODS)
def test_uint8_and_normalised_images_are_cut_alike(method):
    model = model_with(method)
    image = photograph(96, 96)
    config = model.config.image.superpixels
    ours = [
        superpixel_labels(x, config, model.superpixel_network) for x in (image, normalise(image))
    ]
    assert (ours[0] == ours[1]).float().mean() > 0.999


@pytest.mark.parametrize("method", ["sfcn", "seeds"])
def test_superpixels_follow_an_edge_and_a_grid_does_not(method):
    """A vertical edge in the middle of a row of cells, which the grid cuts across."""
    image = torch.full((1, 3, 96, 96), 60, dtype=torch.uint8)
    image[:, :, :, 40:] = 200
    true = np.arange(96) >= 40
    crossing = {}
    for name in (method, "grid"):
        model = model_with(name)
        labels = model.encode_image(image).superpixels[0].numpy()
        sides = [true[np.nonzero(labels == label)[1]] for label in np.unique(labels)]
        crossing[name] = sum(min(side.sum(), (~side).sum()) for side in sides)
    assert crossing[method] < 0.2 * crossing["grid"]


def test_an_image_too_small_for_the_model_is_one_line():
    with pytest.raises(DataError, match="12 x 200 px: a side is shorter than one superpixel cell"):
        cell_grid(200, 12, 16)
    with pytest.raises(DataError, match="its 4 superpixels are fewer than the model's 8 segments"):
        model_with("grid").encode_image(photograph(32, 32))


def test_the_network_is_asked_for():
    with pytest.raises(ConfigError, match="needs its network"):
        superpixel_labels(random_images(1), SuperpixelConfig(method="sfcn"))


@pytest.mark.parametrize("method", METHODS)
def test_stored_maps_come_first_and_the_rest_is_computed(method):
    model = model_with(method)
    config = model.config.image.superpixels
    images = torch.cat([photograph(96, 96, seed) for seed in range(3)])
    computed = model.encode_image(images).superpixels
    stored = torch.randint(36, (96, 96))
    packed = pack_superpixels(images, [None, stored, None], config)
    assert packed.shape == (3, 96, 96)
    expected = torch.stack([computed[0], stored, computed[2]])
    whole = complete_superpixels(images, unpack_superpixels(packed), model.superpixel_labels)
    assert torch.equal(model.encode_image(images, whole).superpixels, expected)
    assert torch.equal(complete_superpixels(images, None, model.superpixel_labels), computed)


def test_loaders_leave_everything_to_the_network_unless_a_row_has_its_map():
    images = random_images(2, 96)
    config = SuperpixelConfig(method="sfcn")
    packed = pack_superpixels(images, [None, None], config)
    assert packed.size == 2
    assert unpack_superpixels(packed) is None
    stored = torch.randint(36, (96, 96))
    mixed = unpack_superpixels([*packed, *pack_superpixels(images[:1], [stored], config)])
    assert torch.equal(mixed[2], stored)
    assert (mixed[:2] == -1).all()
    seeds = pack_superpixels(images, [None, None], SuperpixelConfig(method="seeds"))
    assert seeds.shape == (2, 96, 96)


def test_a_stored_map_of_another_model_is_refused():
    labels = np.arange(36).reshape(6, 6)
    image = ImageConfig()
    small = load_model_config("caft_xs").image
    assert stored_labels(None, image) is None
    assert stored_labels(b"", image) is None
    np.testing.assert_array_equal(stored_labels(encode_label_map(labels), small), labels)
    with pytest.raises(DataError, match="the map has 36 of them, the model takes 196"):
        stored_labels(encode_label_map(labels), image)


@pytest.mark.parametrize("method", ["sfcn", "seeds"])
def test_no_stored_superpixel_is_lost(method):
    config, image = SuperpixelConfig(method=method), load_model_config("caft_b").image
    network = model_with(method).superpixel_network
    scenes = [render_scene(n, SceneConfig(hard=True)).image for n in range(4)]
    images = torch.stack([eval_image(scene, 224, "squash") for scene in scenes])
    full = superpixel_labels(images, config, network)
    stored = encode_superpixels(images, config, 112, network)
    exact = encode_superpixels(images, config, 224, network)
    for data, same, labels in zip(stored, exact, full, strict=True):
        assert label_map_header(data) == LabelMapHeader(112, 112, 196)
        np.testing.assert_array_equal(stored_labels(same, image), labels)
        read = eval_labels(stored_labels(data, image), 224)
        assert (read == labels).float().mean() > 0.9
        assert set(read.unique().tolist()) == set(labels.unique().tolist())


def test_a_smaller_map_has_the_most_frequent_label_of_each_block():
    full = torch.randint(0, 3, (2, 8, 12), generator=torch.Generator().manual_seed(0))
    for factor in (1, 2, 4):
        smaller = shrink_labels(full, factor)
        assert smaller.shape == (2, 8 // factor, 12 // factor)
        for b, y, x in np.ndindex(*smaller.shape):
            block = full[b, y * factor : (y + 1) * factor, x * factor : (x + 1) * factor]
            counts = block.flatten().bincount(minlength=3)
            assert counts[smaller[b, y, x]] == counts.max()


def test_a_superpixel_one_pixel_thin_stays():
    full = torch.zeros(1, 8, 8, dtype=torch.long)
    full[:, 5], full[:, :, 2] = 2, 1
    smaller = shrink_labels(full, 2)
    assert smaller.unique().tolist() == [0, 1, 2]


def test_a_crop_of_a_smaller_map_lies_where_that_of_the_whole_map_does():
    pixels = render_scene(1, SceneConfig(hard=True)).image.repeat(3, 0).repeat(3, 1)
    data = cv2.imencode(".png", pixels[:, :, ::-1])[1].tobytes()
    full = superpixel_labels(
        eval_image(data, 224, "squash")[None], SuperpixelConfig(method="seeds")
    )
    smaller = shrink_labels(full, 2)[0].numpy()
    for seed in range(5):
        ours, theirs = (
            train_image(data, 224, 0.4, np.random.default_rng(seed), labels, 0.5)[1]
            for labels in (smaller, full[0].numpy())
        )
        assert (ours == theirs).float().mean() > 0.88


def test_a_stored_map_of_another_fraction_of_the_image_is_refused():
    with pytest.raises(ConfigError, match=r"map_size_px 100: images of 224 px .* set 224 or 112"):
        encode_superpixels(photograph(224, 224), SuperpixelConfig(), 100)
