"""Ranks of classes and what is counted from them, against a plain computation."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from caft.metrics.classification import class_features, classification_scores, label_ranks


@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(2, 9))
def test_scores_equal_a_plain_computation(seed, images, classes):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 4, (images, classes), generator=generator).double()  # many ties
    labels = torch.randint(0, classes, (images,), generator=generator)
    rank = label_ranks(scores, labels)
    plain = [
        sum(float(s) >= float(row[label]) for s in row)  # itself, and what is not below it
        for row, label in zip(scores, labels, strict=True)
    ]
    assert rank.tolist() == plain
    found = classification_scores(rank, labels)
    assert found["top1"] == pytest.approx(sum(r <= 1 for r in plain) / images)
    assert found["top5"] == pytest.approx(sum(r <= 5 for r in plain) / images)
    means = []
    for label in set(labels.tolist()):
        own = [r <= 1 for r, of in zip(plain, labels.tolist(), strict=True) if of == label]
        means.append(sum(own) / len(own))
    assert found["mean_per_class"] == pytest.approx(sum(means) / len(means))


def test_a_model_that_scores_all_classes_alike_or_with_nan_is_never_right():
    labels = torch.tensor([0, 1, 2])
    for value in (0.0, float("nan")):
        rank = label_ranks(torch.full((3, 3), value), labels)
        assert classification_scores(rank, labels)["top1"] == 0


def test_prompts_of_a_class_weigh_the_same_whatever_their_length():
    prompts = torch.tensor([[3.0, 0.0], [0.0, 0.1], [5.0, 0.0], [7.0, 0.0]])
    torch.testing.assert_close(
        class_features(prompts, 2), torch.tensor([[0.5, 0.5], [1.0, 0.0]]), rtol=0, atol=1e-6
    )
