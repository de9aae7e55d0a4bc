"""Bootstrap intervals against a slow resampling, and recalls with ties against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import top_k_accuracy_score

from caft.metrics import retrieval_recall
from caft.metrics.intervals import recall_intervals
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


def test_intervals_are_those_of_drawing_images_one_by_one(ranked):
    t2i, image_rank, owner = ranked
    found = recall_intervals(t2i, image_rank, owner, samples=4000)
    rng = np.random.default_rng(7)
    recalls = []
    for _ in range(4000):
        drawn = rng.integers(0, IMAGES, IMAGES)
        of_texts = torch.cat([t2i[owner == image] for image in drawn])
        of_images = torch.stack([image_rank[i] for i in drawn if image_rank[i] > 0])
        recalls.append([(of_texts <= 1).double().mean(), (of_images <= 5).double().mean()])
    expected = np.quantile(np.array(recalls), (0.025, 0.975), axis=0)
    assert found["t2i_r1"] == pytest.approx(expected[:, 0], abs=0.02)
    assert found["i2t_r5"] == pytest.approx(expected[:, 1], abs=0.02)


def test_the_same_seed_gives_the_same_interval_around_the_recall(ranked):
    t2i, image_rank, owner = ranked
    found = recall_intervals(t2i, image_rank, owner, samples=250, seed=3)
    assert found == recall_intervals(t2i, image_rank, owner, samples=250, seed=3)
    assert found != recall_intervals(t2i, image_rank, owner, samples=250, seed=4)
    for k in (1, 5, 10):
        low, high = found[f"t2i_r{k}"]
        assert low <= (t2i <= k).double().mean().item() <= high


def test_nothing_varies_where_everything_is_found():
    ones, owner = torch.ones(8, dtype=torch.float64), torch.arange(8)
    assert set(recall_intervals(ones, ones, owner).values()) == {(1.0, 1.0)}


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
