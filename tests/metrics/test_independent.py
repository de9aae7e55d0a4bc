"""Masks and overlaps against pycocotools and torchmetrics, which share no code with ours."""

import numpy as np
import pytest
import torch
import torchvision_operators  # noqa: F401  (before torchmetrics)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco
from torchmetrics.classification import MulticlassJaccardIndex

from caft.masks import decode_rle, encode_rle
from caft.metrics import mask_iou, overlap_scores
from pipelines.evaluate.measures import class_overlaps

SIDE = 24
MASKS = hnp.arrays(bool, st.tuples(st.integers(1, 4), st.just(SIDE), st.just(SIDE)))


def as_coco(mask: np.ndarray) -> dict:
    return coco.encode(np.asfortranarray(mask.astype(np.uint8)))


@settings(deadline=None)
@given(MASKS, MASKS)
def test_overlaps_are_those_of_pycocotools(predicted, truth):
    count = min(len(predicted), len(truth))
    predicted, truth = predicted[:count], truth[:count]
    theirs = [
        coco.iou([as_coco(one)], [as_coco(other)], [0])[0, 0]
        for one, other in zip(predicted, truth, strict=True)
    ]
    np.testing.assert_allclose(mask_iou(predicted, truth), theirs)
    inside, union = (predicted & truth).sum((1, 2)), (predicted | truth).sum((1, 2))
    if union.all():
        assert overlap_scores(inside, union)["miou"] == pytest.approx(np.mean(theirs))


@settings(deadline=None)
@given(MASKS)
def test_run_lengths_are_those_of_pycocotools(masks):
    for mask in masks:
        ours = encode_rle(mask)
        theirs = coco.frPyObjects(ours, *mask.shape)
        np.testing.assert_array_equal(coco.decode(theirs).astype(bool), mask)
        np.testing.assert_array_equal(decode_rle(ours), mask)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 10_000))
def test_overlaps_of_classes_are_those_of_torchmetrics(classes, images, seed):
    """Summed over images, as an index over pixels of all of them."""
    rng = np.random.default_rng(seed)
    theirs = MulticlassJaccardIndex(classes, average="none")
    hits = either = np.zeros(classes)
    for _ in range(images):
        own = rng.integers(0, classes, 200)
        given_ = np.where(rng.random(200) < 0.5, own, rng.integers(0, classes, 200))
        theirs.update(torch.from_numpy(given_), torch.from_numpy(own))
        inside, union = class_overlaps(own, given_, classes)
        hits, either = hits + inside, either + union
    np.testing.assert_allclose(hits / either, theirs.compute().numpy(), rtol=1e-6)
