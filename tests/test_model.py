"""The model as users call it: shapes, masks, segments, heat maps."""

import itertools

import numpy as np
import pytest
import torch
from tests_support import random_images, tiny_config

import caft
from caft.heat_maps import segment_hierarchy
from caft.model import MAX_PART_LOG_SCALE, MAX_WHOLE_LOG_SCALE
from caft.transforms import denormalise, normalise


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return caft.create_model(tiny_config()).eval()


def test_features_have_the_documented_shapes(model):
    images = model.encode_image(random_images(3))
    assert images.whole.shape == images.fine_cls.shape == (3, 16)
    assert images.fine.shape == (3, 8, 16)
    assert [tuple(a.shape) for a in images.assignments] == [(3, 16, 8), (3, 8, 4), (3, 4, 2)]
    for assignment in images.assignments:
        torch.testing.assert_close(assignment.sum(-1), torch.ones(assignment.shape[:2]))
    tokens = model.tokenize(["a red dog", "two small cats", "one", "x"] * 2).view(2, 4, -1)
    texts = model.encode_text(tokens)
    assert texts.parts.shape == (2, 4, 16)
    assert texts.whole.shape == (2, 16)
    assert model.score(images, texts).shape == (3, 2)


def test_uint8_and_normalised_images_are_the_same_input(model):
    images = random_images(2)
    assert torch.equal(denormalise(normalise(images)), images)
    torch.testing.assert_close(
        model.encode_image(images).whole, model.encode_image(normalise(images)).whole
    )


def test_padding_of_a_batch_does_not_change_an_embedding(model):
    short = model.tokenize(["a red dog"])
    padded = model.tokenize(["a red dog", "a dog " * 6])[:1]
    assert padded.shape[1] > short.shape[1]
    embedded = [model.encode_text(t[:, None].expand(-1, 4, -1)) for t in (short, padded)]
    torch.testing.assert_close(embedded[0].parts, embedded[1].parts)
    torch.testing.assert_close(embedded[0].whole, embedded[1].whole)


def test_a_dead_superpixel_changes_nothing_when_masked(model):
    """An empty label must not move the features of the superpixels that exist."""
    images = random_images(2)
    labels = torch.arange(16).view(4, 4).repeat_interleave(8, 0).repeat_interleave(8, 1)
    merged = labels.masked_fill(labels == 15, 14).expand(2, -1, -1)  # label 15 is dead
    relabelled = merged.clone()  # the same segments, the dead label elsewhere
    relabelled[merged == 14] = 15
    features = [model.encode_image(images, maps) for maps in (merged, relabelled)]
    torch.testing.assert_close(features[0].whole, features[1].whole, rtol=1e-4, atol=1e-5)


def test_segments_are_nested(model):
    levels = segment_hierarchy(model.encode_image(random_images(2)))
    for finer, coarser in itertools.pairwise(levels):
        for image in range(2):
            for segment in finer[image].unique():
                assert len(coarser[image][finer[image] == segment].unique()) == 1


def test_heat_maps_cover_the_image_at_its_own_size(model):
    image = random_images(1, 48)[0].permute(1, 2, 0).numpy()[:, :40]
    maps = caft.localize(model, image, ["a red dog", "the sky"])
    assert maps.shape == (2, 48, 40)
    assert maps.min() >= 0
    assert maps.max() <= 1
    assert np.isfinite(maps).all()


def test_another_image_size_works(model):
    features = model.encode_image(random_images(1, 32), None)
    wide = torch.cat([random_images(1, 32), random_images(1, 32, seed=1)], dim=3)
    labels = torch.arange(16).view(2, 8).repeat_interleave(16, 0).repeat_interleave(8, 1)[None]
    assert model.encode_image(wide, labels).whole.shape == features.whole.shape


def test_scales_stay_in_their_ranges(model):
    with torch.no_grad():
        model.part_log_scale.fill_(9.0)
        model.whole_log_scale.fill_(-1.0)
    model.clamp_scales_()
    assert model.part_log_scale.item() == pytest.approx(MAX_PART_LOG_SCALE)
    assert model.whole_log_scale.item() == 0.0
    assert model.scales() == {"part": pytest.approx(100), "whole": 1.0}
    assert MAX_WHOLE_LOG_SCALE["sigmoid"] == 4.0
