"""Training samples of captions: always K parts, chunks in order, nothing invented."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caft.caption_sampling import random_chunks, sample_parts

sentences = st.lists(st.text("abcdefg", min_size=1, max_size=6), min_size=1, max_size=20)


@st.composite
def caption_sets(draw):
    kinds = st.sampled_from(["raw", "short", "long"])
    return [
        {"source": f"s{n}", "kind": draw(kinds), "sentences": draw(sentences)}
        for n in range(draw(st.integers(1, 5)))
    ]


@given(texts=sentences, seed=st.integers(0, 10_000))
def test_random_chunks_keep_order_and_sizes(texts, seed):
    texts = [f"{text}{n}" for n, text in enumerate(texts)]  # distinct
    chunks = random_chunks(texts, 4, np.random.default_rng(seed))
    assert len(chunks) == 4
    if len(texts) <= 4:
        assert chunks[: len(texts)] == texts
        assert set(chunks) == set(texts)
    else:
        pieces = [chunk.split(". ") for chunk in chunks]
        assert [s for piece in pieces for s in piece] == texts
        sizes = [len(piece) for piece in pieces]
        assert all(1 <= size <= 3 for size in sizes[:3])
        if len(texts) <= 12:
            assert 1 <= sizes[3] <= 3
        else:
            assert sizes == [3, 3, 3, len(texts) - 9]


def test_all_cuts_of_six_sentences_occur():
    rng = np.random.default_rng(0)
    cuts = {
        tuple(len(chunk.split(". ")) for chunk in random_chunks(list("abcdef"), 4, rng))
        for _ in range(500)
    }
    assert len(cuts) == 10  # compositions of 6 into 4 parts of 1 to 3


@given(captions=caption_sets(), extra=st.integers(0, 6), seed=st.integers(0, 1000))
def test_a_sample_has_k_parts_made_of_the_image_s_own_sentences(captions, extra, seed):
    parts = sample_parts(captions, np.random.default_rng(seed), 4, extra)
    known = {s for caption in captions for s in caption["sentences"]}
    assert len(parts) == 4 + extra
    assert all(s in known for part in parts for s in part.split(". "))
    again = sample_parts(captions, np.random.default_rng(seed), 4, extra)
    assert parts == again


def test_extra_parts_come_from_the_other_captions():
    captions = [
        {"kind": "long", "sentences": ["a1", "a2", "a3", "a4"]},
        {"kind": "short", "sentences": ["b1"]},
        {"kind": "raw", "sentences": ["c1"]},
    ]
    for seed in range(20):
        parts = sample_parts(captions, np.random.default_rng(seed), 4, 4)
        assert parts[:4] == ["a1", "a2", "a3", "a4"]
        assert {s for part in parts[4:] for s in part.split(". ")} <= {"b1", "c1"}


def test_a_row_without_sentences_is_an_error():
    with pytest.raises(ValueError, match="without a sentence"):
        sample_parts([{"kind": "raw", "sentences": []}], np.random.default_rng(0), 4, 4)
