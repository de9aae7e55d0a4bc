"""Recall against a slow count by hand, and the cases in which a model could look too good."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from caft.metrics import retrieval_recall
from caft.metrics.retrieval import ranks

RECALLS = [f"{way}_r{k}" for way in ("t2i", "i2t") for k in (1, 5, 10)]


def rank_by_hand(right: list[float], wrong: list[float]) -> float:
    usable = [score for score in right if not math.isnan(score) and score != -math.inf]
    if not usable:
        return math.inf
    return 1 + sum(not score < max(usable) for score in wrong)


@st.composite
def benchmarks(draw):
    images = draw(st.integers(1, 7))
    owner = draw(st.lists(st.integers(0, images - 1), min_size=1, max_size=9))
    value = st.sampled_from([-1.0, 0.0, 0.5, 2.0, math.nan, -math.inf])
    row = st.lists(value, min_size=len(owner), max_size=len(owner))
    return draw(st.lists(row, min_size=images, max_size=images)), owner


@settings(max_examples=300, deadline=None)
@given(benchmarks())
def test_ranks_are_those_counted_by_hand(benchmark):
    scores, owner = benchmark
    t2i, i2t = ranks(torch.tensor(scores), owner)
    texts = range(len(owner))
    assert t2i.tolist() == [
        rank_by_hand([scores[own][t]], [row[t] for i, row in enumerate(scores) if i != own])
        for t, own in enumerate(owner)
    ]
    assert i2t.tolist() == [
        rank_by_hand(
            [row[t] for t in texts if owner[t] == i], [row[t] for t in texts if owner[t] != i]
        )
        for i, row in enumerate(scores)
        if i in owner
    ]


def test_a_perfect_model_and_a_model_that_is_always_wrong():
    perfect = retrieval_recall(torch.eye(12), torch.arange(12))
    assert all(perfect[key] == 1.0 for key in RECALLS)
    assert perfect["t2i_median_rank"] == perfect["i2t_median_rank"] == 1
    wrong = retrieval_recall(-torch.eye(12), torch.arange(12))
    assert all(wrong[key] == 0.0 for key in RECALLS)


def test_a_constant_model_finds_nothing():
    constant = retrieval_recall(torch.zeros(20, 20), torch.arange(20))
    assert all(constant[key] == 0.0 for key in RECALLS)


def test_a_score_that_is_no_number_is_never_a_hit_even_among_few():
    scores = torch.eye(3)
    scores[1, 1] = math.nan
    recall = retrieval_recall(scores, torch.arange(3))
    assert recall["t2i_r10"] == recall["i2t_r10"] == pytest.approx(2 / 3)


def test_a_wrong_score_that_is_no_number_does_not_help():
    scores = torch.full((3, 3), math.nan).fill_diagonal_(1.0)
    assert retrieval_recall(scores, torch.arange(3))["t2i_r1"] == 0.0


def test_a_pair_that_dropped_out_is_no_hit():
    scores = torch.full((2, 2), -math.inf)
    assert retrieval_recall(scores, torch.arange(2))["i2t_r10"] == 0.0


def test_any_of_several_texts_finds_an_image():
    # image 0 has texts 0 and 1, image 1 has text 2: only text 1 is above everything wrong
    scores = np.array([[0.1, 0.9, 0.5], [0.2, 0.3, 0.4]])
    recall = retrieval_recall(scores, [0, 0, 1])
    assert recall["i2t_r1"] == 1.0
    assert recall["t2i_r1"] == pytest.approx(1 / 3)


def test_an_image_without_a_text_is_a_distractor_and_no_query():
    scores = torch.tensor([[1.0], [2.0]])
    recall = retrieval_recall(scores, [0])
    assert recall["t2i_r1"] == 0.0
    assert recall["i2t_r1"] == 1.0


def test_random_scores_give_chance():
    torch.manual_seed(0)
    recall = retrieval_recall(torch.rand(1000, 1000), torch.arange(1000))
    assert recall["t2i_r10"] == pytest.approx(0.01, abs=0.01)
    assert recall["i2t_median_rank"] == pytest.approx(500, abs=60)


@pytest.mark.parametrize(
    ("shape", "owner"), [((3, 2), [0]), ((3, 2), [0, 3]), ((3, 2), [0, -1]), ((0, 0), [])]
)
def test_what_does_not_fit_is_refused(shape, owner):
    with pytest.raises(ValueError, match="text_to_image"):
        retrieval_recall(torch.zeros(shape), owner)
