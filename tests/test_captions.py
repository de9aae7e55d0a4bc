"""Sentence splitting and evaluation chunks: real captions, hard cases, properties."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caft.captions import REFERENCE_MIN_CHARS, even_chunks, split_sentences

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden" / "captions.json"


@pytest.mark.skipif(not GOLDEN.exists(), reason="reference captions are not here")
def test_reference_mode_is_the_reference_s_on_real_captions():
    for case in json.loads(GOLDEN.read_text()):
        pieces = split_sentences(case["text"], "reference")
        assert pieces == case["reference_sentences_eval"]
        training = split_sentences(case["text"], "reference", REFERENCE_MIN_CHARS)
        assert training == case["reference_sentences_train"]
        if pieces:
            assert even_chunks(pieces) == case["reference_even_chunks"]


def test_reference_mode_cuts_at_every_stop():
    text = "It is 3.5 m high.</s>St. Mary's"
    assert split_sentences(text, "reference") == ["It is 3", "5 m high", "St", "Mary's"]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("A dog. A cat.", ["A dog", "A cat"]),
        ("It is 3.5 m high. St. Mary's is old.", ["It is 3.5 m high", "St. Mary's is old"]),
        ("Dr. Smith met Mrs. Jones.", ["Dr. Smith met Mrs. Jones"]),
        ("J. R. R. Tolkien wrote it. He smoked.", ["J. R. R. Tolkien wrote it", "He smoked"]),
        ("Wait... what is it? A dog!", ["Wait... what is it?", "A dog!"]),
        ("See https://a.b/c.html. It works.", ["See https://a.b/c.html", "It works"]),
        ('He said "Stop." Then he left.', ['He said "Stop."', "Then he left"]),
        ("- a red dog\n- a cat.\n1. one", ["a red dog", "a cat", "one"]),
        ("A dog.The cat sleeps.", ["A dog", "The cat sleeps"]),
        ("a dog runs. it is brown.", ["a dog runs", "it is brown"]),
        ("It is 5 p.m. and dark.", ["It is 5 p.m. and dark"]),
        ("Made in the U.S. The flag waves.", ["Made in the U.S", "The flag waves"]),
        ("一只狗。一只猫！", ["一只狗", "一只猫！"]),
        ("Un perro. El gato duerme.", ["Un perro", "El gato duerme"]),
        ("Ein Hund, z.B. ein Dackel. Er bellt.", ["Ein Hund, z.B. ein Dackel", "Er bellt"]),
        ("", []),
        (" . ", []),
    ],
)
def test_default_mode(text, sentences):
    assert split_sentences(text) == sentences


@given(st.text(max_size=200), st.sampled_from(["default", "reference"]))
def test_every_word_character_survives_and_nothing_is_invented(text, mode):
    pieces = split_sentences(text, mode)
    assert all(piece == piece.strip() and piece for piece in pieces)
    if mode == "reference":
        joined = "".join(pieces)
        kept = [c for c in text.replace("</s>", "") if c.isalnum()]
        assert [c for c in joined if c.isalnum()] == kept


@given(st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=30))
def test_chunks_are_always_four_and_keep_order(sentences):
    sentences = [f"{s}{n}" for n, s in enumerate(sentences)]
    chunks = even_chunks(sentences)
    assert len(chunks) == 4
    if len(sentences) > 4:
        assert [s for chunk in chunks for s in chunk.split(". ")] == sentences


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(1, [1, 1, 1, 1]), (5, [2, 1, 1, 1]), (10, [3, 3, 2, 2]), (12, [3] * 4), (15, [3, 3, 3, 6])],
)
def test_sizes_of_chunks(count, sizes):
    chunks = even_chunks([str(n) for n in range(count)])
    assert [len(chunk.split(". ")) for chunk in chunks] == sizes


def test_no_sentence_is_an_error():
    with pytest.raises(ValueError, match="without a sentence"):
        even_chunks([])
