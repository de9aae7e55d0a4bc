"""Counting row by row gives what the whole matrix gives, however the rows are cut."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from caft.metrics.retrieval import ranks
from caft.retrieval import join, own_scores, ranking, tally

K = 3


@st.composite
def benchmarks(draw):
    images = draw(st.integers(1, 7))
    owner = draw(st.lists(st.integers(0, images - 1), min_size=1, max_size=9))
    value = st.sampled_from([-1.0, 0.0, 0.5, 2.0, math.nan, -math.inf])
    row = st.lists(value, min_size=len(owner), max_size=len(owner))
    scores = draw(st.lists(row, min_size=images, max_size=images))
    cuts = draw(st.sets(st.integers(1, images), max_size=3))
    return torch.tensor(scores), torch.tensor(owner), sorted({0, images, *cuts})


def counted(scores, owner, cuts, backwards=False):
    own = own_scores(scores, torch.arange(len(owner)), owner)
    parts = [tally(scores[a:b], a, owner, own, K) for a, b in itertools.pairwise(cuts)]
    return ranking(join(parts[::-1] if backwards else parts), owner, own)


@settings(max_examples=200)
@given(benchmarks())
def test_ranks_are_those_of_the_whole_matrix(benchmark):
    scores, owner, cuts = benchmark
    t2i, i2t = ranks(scores, owner)
    found = counted(scores, owner, cuts)
    assert found.text_rank.tolist() == t2i.tolist()
    assert found.i2t.tolist() == i2t.tolist()


@settings(max_examples=100)
@given(benchmarks())
def test_neither_the_cuts_nor_their_order_show(benchmark):
    scores, owner, cuts = benchmark
    whole = counted(scores, owner, [0, len(scores)])
    for found in (counted(scores, owner, cuts), counted(scores, owner, cuts, backwards=True)):
        for name, value in vars(whole).items():
            torch.testing.assert_close(getattr(found, name), value, rtol=0, atol=0)


@settings(max_examples=100)
@given(benchmarks())
def test_best_items_are_by_score_then_by_index(benchmark):
    scores, owner, cuts = benchmark
    found = counted(scores, owner, cuts)
    clean = [[math.inf if math.isnan(value) else value for value in row] for row in scores.tolist()]
    for text in range(len(owner)):
        order = sorted(range(len(clean)), key=lambda image: (-clean[image][text], image))
        best = [image for image in found.text_top[text].tolist() if image >= 0]
        assert best == [image for image in order[:K] if clean[image][text] > -math.inf]
    for image, row in enumerate(clean):
        order = sorted(range(len(row)), key=lambda text: (-row[text], text))
        best = [text for text in found.image_top[image].tolist() if text >= 0]
        assert best == [text for text in order[:K] if row[text] > -math.inf]


def test_margins_are_to_the_best_wrong_item():
    scores = torch.tensor([[3.0, 1.0, 0.0], [2.0, 5.0, 4.0]])
    found = counted(scores, torch.tensor([0, 1, 1]), [0, 1, 2])
    assert found.text_right.tolist() == [3.0, 5.0, 4.0]
    assert found.text_wrong.tolist() == [2.0, 1.0, 0.0]
    assert found.image_right.tolist() == [3.0, 5.0]
    assert found.image_wrong.tolist() == [1.0, 2.0]


def test_a_large_matrix_in_uneven_pieces():
    torch.manual_seed(0)
    scores = torch.randint(0, 50, (200, 333)).float()  # many ties
    owner = torch.randint(0, 200, (333,))
    found = counted(scores, owner, [0, 64, 65, 190, 200])
    t2i, i2t = ranks(scores, owner)
    assert torch.equal(found.text_rank, t2i)
    assert torch.equal(found.i2t, i2t)
    assert found.text_rank.double().mean() == pytest.approx(100, abs=20)
