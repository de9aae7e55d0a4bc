"""Training samples of captions: always K parts, chunks in order, nothing invented."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caft.caption_sampling import random_chunks, sample_parts

PUBLISHED = Path(__file__).resolve().parents[2] / "shared" / "golden" / "caption_sampling.json"
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


@pytest.mark.parametrize(
    ("captions", "whole"),
    [
        ([("raw", ["a"]), ("long", ["b", "c"]), ("short", ["d"])], "a b c d"),
        ([("raw", ["a", "b"]), ("long", ["c", "d"]), ("long", ["e", "f", "g"][:2])], "a b c d e f"),
        ([("raw", ["a"])], "a"),
        ([("long", []), ("short", ["a", "b"])], "a b"),
    ],
)
def test_without_a_long_caption_all_sentences_make_one_in_order(captions, whole):
    """Up to eight of them, so here every one; what is cut is as long as a long caption's chunks."""
    captions = [{"kind": kind, "sentences": sentences} for kind, sentences in captions]
    for seed in range(20):
        parts = sample_parts(captions, np.random.default_rng(seed), 4, 4)
        cut = [s for part in parts[:4] for s in part.split(". ")]
        assert cut[: len(whole.split())] == whole.split()
        assert {s for part in parts for s in part.split(". ")} <= set(whole.split())


def test_an_extra_repeats_a_sentence_only_where_there_are_too_few():
    long = {"kind": "long", "sentences": ["x", "y", "z"]}
    for others, repeats in ((["a", "b", "c"], False), (["a", "b"], True)):
        captions = [long, {"kind": "short", "sentences": others}]
        rng = np.random.default_rng(0)
        drawn = [part for _ in range(200) for part in sample_parts(captions, rng, 4, 4)[4:]]
        sizes = [len(part.split(". ")) for part in drawn]
        assert set(sizes) == {1, 2, 3}
        twice = {size for size, part in zip(sizes, drawn, strict=True)
                 if len(set(part.split(". "))) < size}  # fmt: skip
        assert twice == ({3} if repeats else set())


@pytest.mark.skipif(not PUBLISHED.exists(), reason="reference numbers are not here")
@pytest.mark.parametrize("row", range(7))
def test_shares_are_those_of_the_published_sampling(row):
    expected = json.loads(PUBLISHED.read_text())["rows"][row]
    captions = published_row(expected)
    rng = np.random.default_rng(row)
    draws = 12_000
    counts = Counter()
    for _ in range(draws):
        parts = [part.split(". ") for part in sample_parts(captions, rng, 4, 4)]
        chunks, extras = parts[:4], parts[4:]
        counts["chunks", "-".join(str(len(chunk)) for chunk in chunks)] += 1
        counts["first", chunks[0][0][0]] += 1
        counts.update(("size", str(len(extra))) for extra in extras)
        merged = [s for extra in extras for s in extra]
        counts["twice"] += len(set(merged)) < len(merged)
        counts["inside"] += any(len(set(extra)) < len(extra) for extra in extras)
    for name, shares, of in (
        ("chunks", "chunk_sizes_share", draws),
        ("size", "extra_sizes_share", 4 * draws),
        ("first", "caption_of_first_chunk_share", draws),
    ):
        ours = {key[1]: count / of for key, count in counts.items() if key[0] == name}
        assert ours.keys() == expected[shares].keys(), name
        for key, share in expected[shares].items():
            assert ours[key] == pytest.approx(share, abs=chance(share, of)), (name, key)
    twice = expected["rows_with_a_sentence_twice_among_the_four_extras"]
    assert counts["twice"] / draws == pytest.approx(twice, abs=chance(twice, draws))
    assert counts["inside"] == 0


def chance(share: float, draws: int) -> float:
    """Four standard errors of the difference to the published share, itself of 20,000 draws."""
    return 4 * (share * (1 - share) * (1 / draws + 1 / 20_000)) ** 0.5


def published_row(expected) -> list[dict]:
    """The row's captions in the order of the lists; a sentence begins with its caption's letter."""
    captions = [{"kind": "raw", "sentences": ["r0"]}]
    for letter, source in zip("abc", ("IB", "SV", "LLA"), strict=True):
        counts = {
            "short": expected["raw_and_short_sentences"][f"short{source}"],
            "long": expected["long_sentences"][f"long{source}"],
        }
        for kind, count in counts.items():
            name = letter if kind == "short" else letter.upper()
            sentences = [f"{name}{n}" for n in range(count)]
            captions.append({"kind": kind, "sentences": sentences})
    return captions


def test_a_row_without_sentences_is_an_error():
    with pytest.raises(ValueError, match="without a sentence"):
        sample_parts([{"kind": "raw", "sentences": []}], np.random.default_rng(0), 4, 4)
