"""Scenes: the same for a seed, true to their captions, and different in one way only."""

import numpy as np
import pytest

from caft.masks import decode_rle, encode_rle
from pipelines.demo.scenes import PLACES, SceneConfig, contrast_groups, render_scene

EASY, HARD = SceneConfig(), SceneConfig(hard=True)


def test_a_seed_gives_the_same_bytes_and_words():
    one, two = render_scene(3, EASY), render_scene(3, EASY)
    assert np.array_equal(one.image, two.image)
    assert one.caption == two.caption
    assert render_scene(4, EASY).caption != one.caption


@pytest.mark.parametrize("config", [EASY, HARD], ids=["easy", "hard"])
def test_captions_and_masks_belong_to_the_objects(config):
    captions = set()
    for seed in range(60):
        scene = render_scene(seed, config)
        captions.add(scene.caption)
        assert len(scene.objects) in config.object_counts
        assert 4 <= len(scene.sentences) <= 8
        assert len(scene.masks) == len(scene.sentences)
        assert len({item.colour for item in scene.objects}) == len(scene.objects)
        for item in scene.objects:
            (sentence,) = [
                n
                for n, text in enumerate(scene.sentences)
                if PLACES[item.place] in text and f"{item.colour} {item.shape}" in text
            ]
            mask = scene.masks[sentence]
            assert mask.sum() > 30
            assert abs(scene.image[mask].std(axis=0)).mean() < 80
    assert len(captions) == 60


@pytest.mark.parametrize("kind", ["attribute", "position", "swap"])
def test_contrast_groups_differ_in_exactly_one_way(kind):
    for seed in range(20):
        group = contrast_groups(seed, HARD, kind)
        assert len({scene.caption for scene in group}) == 4
        base = group[0].objects
        for scene in group[1:]:
            changed = [(a, b) for a, b in zip(base, scene.objects, strict=True) if a != b]
            fields = {f for a, b in changed for f in vars(a) if getattr(a, f) != getattr(b, f)}
            if kind == "swap":
                assert len(changed) == 2
                assert fields == {"colour"}
                (a, c), (b, d) = changed
                assert (a.colour, b.colour) == (d.colour, c.colour)
            else:
                assert len(changed) == 1
                assert len(fields) == 1
                allowed = {"place"} if kind == "position" else {"colour", "shape", "texture"}
                assert fields <= allowed


def test_run_lengths_survive_a_round_trip():
    for seed in range(10):
        for mask in render_scene(seed, HARD).masks:
            assert np.array_equal(decode_rle(encode_rle(mask)), mask)
    full = np.ones((3, 2), dtype=bool)
    assert encode_rle(full)["counts"] == [0, 6]
    assert np.array_equal(decode_rle(encode_rle(full)), full)
