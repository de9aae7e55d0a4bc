"""Intervals against resampling and against truths they must hold; recalls with ties against
scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import top_k_accuracy_score

from caft.metrics import (
    difference,
    holm,
    interval,
    ratio,
    recall_estimates,
    recall_intervals,
    retrieval_recall,
)
from caft.metrics.intervals import class_mean
from caft.metrics.retrieval import ranks

IMAGES, TEXTS = 60, 150


@pytest.fixture(scope="module")
def ranked():
    """Ranks on scores with many ties; some images have no text, some several."""
    rng = np.random.default_rng(0)
    owner = torch.from_numpy(rng.integers(0, IMAGES, TEXTS))
    scores = torch.from_numpy(rng.integers(0, 9, (IMAGES, TEXTS))).float()
    scores[owner, torch.arange(TEXTS)] += 4
    t2i, i2t = ranks(scores, owner)
    image_rank = torch.zeros(IMAGES, dtype=torch.float64)
    image_rank[owner.unique()] = i2t
    return t2i, image_rank, owner


def test_an_image_is_drawn_with_all_its_texts(ranked):
    t2i, image_rank, owner = ranked
    found = recall_estimates(t2i, image_rank, owner)
    rng = np.random.default_rng(7)
    recalls = []
    for _ in range(1500):
        drawn = rng.integers(0, IMAGES, IMAGES)
        of_texts = torch.cat([t2i[owner == image] for image in drawn])
        of_images = torch.stack([image_rank[i] for i in drawn if image_rank[i] > 0])
        recalls.append([(of_texts <= 1).double().mean(), (of_images <= 5).double().mean()])
    spread = np.std(np.array(recalls), axis=0)
    for name, expected in zip(("t2i_r1", "i2t_r5"), spread, strict=True):
        assert np.sqrt((found[name].influence ** 2).sum()) == pytest.approx(expected, rel=0.08)
        low, high = interval(found[name])
        assert low < found[name].value < high
        assert high - low == pytest.approx(2 * 1.96 * expected, rel=0.15)


@pytest.mark.parametrize("images", [1, 16, 500])
def test_what_never_or_always_happens_is_as_sure_as_its_images_are_many(images):
    ones, owner = torch.ones(images, dtype=torch.float64), torch.arange(images)
    always = recall_intervals(ones, ones, owner)["t2i_r1"]
    assert always == (pytest.approx(0.025 ** (1 / images)), 1.0)  # Clopper and Pearson
    low, high = recall_intervals(ones * 99, ones * 99, owner)["i2t_r10"]
    assert (low, high) == (0.0, pytest.approx(1 - always[0]))
    # Five captions of an image that are found or missed together tell no more than one.
    five = owner.repeat_interleave(5)
    assert recall_intervals(ones.repeat_interleave(5), ones, five)["t2i_r1"] == always


def held(truth, draw):
    """Of 400 samples that `draw` makes, the share whose interval holds the truth."""
    intervals = [interval(draw()) for _ in range(400)]
    return np.mean([low <= truth <= high for low, high in intervals])


@pytest.mark.parametrize("images", [16, 200])
def test_intervals_hold_for_few_images_and_for_rare_misses(images):
    rng = np.random.default_rng(images)
    ones = np.ones(images)
    for rate in (0.02, 0.5, 0.97):
        assert held(rate, lambda rate=rate: ratio(rng.binomial(1, rate, images), ones)) >= 0.93
    assert held(0.2, lambda: ratio(rng.beta(0.2, 0.8, images), ones)) >= 0.93  # such as IoU

    def pixels():
        either = rng.lognormal(0, 1, images)
        return ratio(either * rng.beta(2, 2, images), either)

    assert held(0.5, pixels) >= 0.93


def test_classes_weigh_the_same_and_one_image_of_a_class_is_not_sure():
    labels = np.arange(40)
    right = (labels % 2).astype(float)
    alone = class_mean(labels, labels, right, np.ones(40), 40)
    assert alone.value == 0.5
    assert interval(alone) == pytest.approx(interval(ratio(right, np.ones(40))))
    uneven = class_mean(np.arange(4), np.array([0, 0, 0, 1]), np.array([1, 1, 0, 1]), np.ones(4), 4)
    assert uneven.value == pytest.approx((2 / 3 + 1) / 2)
    assert uneven.images < 4


def of_pairs(first, second):
    ones = np.ones(len(first))
    return difference(ratio(np.array(first, float), ones), ratio(np.array(second, float), ones))


def test_a_difference_on_the_same_images_is_surer_than_both_recalls():
    first = np.arange(400) % 2
    second = first.copy()
    second[:24] = 1  # 12 more, none fewer
    found = of_pairs(first, second)
    assert found.value == pytest.approx(12 / 400)
    assert 0 < found.low < found.value < found.high < 0.06
    assert found.p < 0.01
    low, high = interval(ratio(first.astype(float), np.ones(400)))
    assert low < second.mean() < high
    back = of_pairs(second, first)
    assert (back.value, back.low, back.high) == pytest.approx(
        (-found.value, -found.high, -found.low)
    )


def test_equal_models_may_still_differ_elsewhere():
    found = of_pairs([1, 0] * 250, [1, 0] * 250)
    assert (found.value, found.p) == (0, 1)
    assert found.low == pytest.approx(-found.high)
    assert 0.003 < found.high < 0.01


def test_differences_hold_and_are_rarely_found_where_there_is_none():
    rng = np.random.default_rng(5)
    for images in (16, 200):
        inside, alarms = 0, 0
        for _ in range(400):
            both, one, other = rng.random((3, images))
            first, second = (np.where(both < 0.6, both < 0.4, x < 0.5) for x in (one, other))
            found = of_pairs(first, second)
            inside += found.low <= 0 <= found.high
            alarms += found.p < 0.05
        assert inside >= 0.93 * 400
        assert alarms == 400 - inside


def test_many_questions_make_each_answer_less_sure():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_recalls_with_ties_are_scikit_learn_s_once_ties_are_lost():
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 12, (40, 40)).astype(np.float64)
    scores[np.diag_indices(40)] += 6
    recall = retrieval_recall(scores, np.arange(40))
    lost = scores - 0.5 * np.eye(40)  # scikit-learn breaks ties by index; here the right one loses
    for k in (1, 5, 10):
        options = {"k": k, "labels": np.arange(40)}
        assert recall[f"t2i_r{k}"] == top_k_accuracy_score(np.arange(40), lost.T, **options)
        assert recall[f"i2t_r{k}"] == top_k_accuracy_score(np.arange(40), lost, **options)
