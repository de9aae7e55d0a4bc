"""The stage's overlaps are those of the public functions, image by image."""

import numpy as np
import pytest
import torch

import caft
from caft.masks import encode_rle
from caft.metrics import binarise, centre_box, mask_overlap, peak_overlap
from caft.transforms import decode_image
from pipelines.evaluate.config import BenchmarkConfig
from pipelines.evaluate.measures import RegionMeasure, heat_overlap, one_image, region_overlaps
from pipelines.evaluate.opening import Region, open_benchmark
from pipelines.evaluation_input import read_piece


def first_piece(settings, checkpoint, n):
    """Model, regions and features of each image in a benchmark's first row group."""
    model = caft.load_model(checkpoint)
    benchmark = open_benchmark(BenchmarkConfig(**settings["benchmarks"][n]), "benchmarks.0")
    rows = read_piece(benchmark.dataset.path, benchmark.split, benchmark.pieces[0])
    pixels = torch.stack([model.preprocess(row["image"]) for row in rows])
    with torch.inference_mode():
        features = model.encode_image(pixels)
    for k, row in enumerate(rows):
        regions = benchmark.regions.get(row["url"], ())
        yield model, decode_image(row["image"]), one_image(features, k), regions


def test_overlaps_are_those_of_localize(settings, checkpoint):
    for model, image, features, regions in first_piece(settings, checkpoint, 0):
        masks = np.stack([region.mask for region in regions])
        heats = caft.localize(model, image, [region.text for region in regions])
        expected = [
            *mask_overlap(binarise(heats), masks),
            *mask_overlap(centre_box(*image.shape[:2]), masks),
            *peak_overlap(heats, masks),
        ]
        np.testing.assert_array_equal(
            region_overlaps(model, features, regions, "squash"), np.stack(expected, axis=1)
        )


def test_masks_may_be_of_another_size_than_the_stored_image(settings, checkpoint):
    model, _, features, regions = next(first_piece(settings, checkpoint, 0))
    twice = [
        Region(r.text, encode_rle(r.mask.repeat(2, axis=0).repeat(2, axis=1))) for r in regions
    ]
    same = region_overlaps(model, features, regions, "squash")
    np.testing.assert_array_equal(region_overlaps(model, features, twice, "squash"), 4 * same)


def test_an_image_without_regions_has_no_overlaps(settings, checkpoint):
    model, _, features, _ = next(first_piece(settings, checkpoint, 0))
    assert region_overlaps(model, features, (), "squash").shape == (0, 6)


def test_a_heat_map_is_fitted_to_the_mask():
    heat = np.array([[0.0, 1.0], [0.0, 0.0]], dtype=np.float32)
    mask = np.zeros((40, 60), dtype=bool)
    mask[:20, 30:] = True
    assert heat_overlap(heat, mask, "squash") == (600, 600)
    assert heat_overlap(heat, ~mask, "squash") == (0, 2400)


def test_scores_of_regions_are_those_of_their_counts():
    rows = np.array([[6, 10, 1, 10, 2, 4], [0, 90, 45, 90, 0, 0]])
    scores = RegionMeasure({}).scores(rows)
    assert scores == {
        "regions": 2,
        "miou": pytest.approx(0.3),
        "oiou": pytest.approx(0.06),
        "precision_50": 0.5,
        "pointing": 0.25,
        "centre_box_miou": pytest.approx(0.3),
        "centre_box_oiou": pytest.approx(0.46),
        "centre_box_precision_50": 0.5,  # 45 of 90: at least half counts
    }


def test_a_crop_points_at_nothing_that_it_does_not_show():
    heat = np.array([[0.0, 1.0], [0.0, 0.0]], dtype=np.float32)
    mask = np.zeros((40, 80), dtype=bool)
    mask[:20, 40:] = True  # of it, columns 60 and above were cropped away
    assert heat_overlap(heat, mask, "crop") == (400, 800)
    assert heat_overlap(heat, ~mask, "crop") == (0, 2800)
