"""Features as objects: some kinds absent, indexed, joined, normalised, in files, scored."""

import pytest
import torch
from tests_support import random_images, tiny_config

import caft
from caft.errors import DataError
from caft.model import ImageFeatures, TextFeatures

CAPTIONS = ["A dog sleeps. A lamp stands behind it.", "A red cube.", "Three trees and a lake."]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return caft.create_model(tiny_config()).eval()


@pytest.fixture(scope="module")
def images(model):
    with torch.no_grad():
        return model.encode_image(random_images(5))


@pytest.fixture(scope="module")
def texts(model):
    with torch.no_grad():
        return model.encode_text(CAPTIONS)


def test_what_the_score_needs_is_enough_for_the_same_score(model, images, texts):
    less = ImageFeatures(whole=images.whole, fine=images.fine)
    assert torch.equal(model.score(less, texts), model.score(images, texts))


def test_what_is_missing_is_named(model, images, texts):
    with pytest.raises(DataError, match=r"ImageFeatures: 'fine' was left out .* keep it"):
        model.score(ImageFeatures(whole=images.whole), texts)
    with pytest.raises(DataError, match="TextFeatures: 'parts' was left out"):
        model.score(images, TextFeatures(whole=texts.whole))
    whole = model.score(ImageFeatures(whole=images.whole), TextFeatures(whole=texts.whole), alpha=0)
    assert torch.equal(whole, model.whole_scores(images, texts))


@pytest.mark.parametrize("index", [2, slice(1, 4), [3, 0], torch.tensor([4, 4, 1])])
def test_an_index_takes_every_kind_alike(model, images, texts, index):
    some = images[index]
    rows = torch.arange(5)[[index] if isinstance(index, int) else index]
    assert len(some) == len(rows)
    assert torch.equal(some.superpixels, images.superpixels[rows])
    assert [len(level) for level in some.assignments] == [len(rows)] * len(images.assignments)
    assert torch.allclose(
        model.score(some, texts), model.score(images, texts)[rows], rtol=1e-5, atol=1e-4
    )


def test_joined_parts_are_the_batch(images):
    joined = ImageFeatures.join([images[:2], images[2:]])
    assert torch.equal(joined.fine, images.fine)
    assert torch.equal(joined.assignments[1], images.assignments[1])
    fewer = ImageFeatures.join([images[:2], ImageFeatures(whole=images.whole[2:])])
    assert fewer.fine is None
    assert torch.equal(fewer.whole, images.whole)
    with pytest.raises(DataError, match="none to join"):
        ImageFeatures.join([])


def test_normalised_embeddings_score_alike(model, images, texts):
    unit = images.normalised()
    assert torch.allclose(unit.fine.norm(dim=-1), torch.ones(5, unit.fine.shape[1]))
    assert torch.equal(unit.superpixels, images.superpixels)
    assert torch.allclose(model.whole_scores(unit, texts), model.whole_scores(images, texts))


def test_a_file_gives_them_back(images, texts, tmp_path):
    half = images.to(torch.float16)
    half.save(tmp_path / "images.safetensors")
    back = ImageFeatures.load(tmp_path / "images.safetensors")
    assert back.whole.dtype == torch.float16
    assert back.superpixels.dtype == images.superpixels.dtype
    assert torch.equal(back.fine, half.fine)
    assert len(back.assignments) == len(images.assignments)
    with pytest.raises(DataError, match="holds ImageFeatures, not TextFeatures"):
        TextFeatures.load(tmp_path / "images.safetensors")
    (tmp_path / "other").write_bytes(b"nothing of the kind")
    for name in ("other", "absent"):
        with pytest.raises(DataError, match="cannot be read as features"):
            TextFeatures.load(tmp_path / name)
