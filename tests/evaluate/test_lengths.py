"""R@1 by caption length: groups that together are the whole, counted independently."""

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st
from ranking_support import ranking_of

from caft.metrics import retrieval_recall
from pipelines.evaluate.controls import GROUPS, recalls_by_length


def test_short_captions_found_and_long_ones_not():
    captions = [("A dog",)] * 3 + [("A dog", "A cat", "A bird runs over the wide lawn")] * 3
    scores = torch.eye(6)
    scores[3:, 3:] = 1 - torch.eye(3)
    found = recalls_by_length(captions, ranking_of(scores, range(6)))
    assert found["sentences"] == [
        {"low": 1, "high": 1, "texts": 3, "t2i_r1": 1, "i2t_r1": 1},
        {"low": 3, "high": 3, "texts": 3, "t2i_r1": 0, "i2t_r1": 0},
    ]
    assert [(g["low"], g["high"]) for g in found["tokens"]] == [(2, 2), (13, 13)]


@given(st.lists(st.integers(1, 30), min_size=2, max_size=40), st.integers(0, 2**31))
def test_groups_are_a_partition_in_order(lengths, seed):
    captions = [("word",) * length for length in lengths]
    count = len(captions)
    scores = torch.rand(count, count, generator=torch.Generator().manual_seed(seed)).round(
        decimals=1
    )
    groups = recalls_by_length(captions, ranking_of(scores, range(count)))["sentences"]
    assert 1 <= len(groups) <= GROUPS
    assert sum(group["texts"] for group in groups) == count
    ends = [end for group in groups for end in (group["low"], group["high"])]
    assert ends == sorted(ends)
    assert (ends[0], ends[-1]) == (min(lengths), max(lengths))
    expected = retrieval_recall(scores, range(count))
    for key in ("t2i_r1", "i2t_r1"):
        hits = sum(round(group[key] * group["texts"]) for group in groups)
        assert hits == round(expected[key] * count)
    for before, after in pairwise(groups):
        assert before["high"] < after["low"]
