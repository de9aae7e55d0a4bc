"""Sentence splitting and evaluation chunks: real captions, hard cases, properties."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caft.captions import REFERENCE_MIN_CHARS, even_chunks, split_sentences

TESTS = Path(__file__).resolve().parent
LABELLED = TESTS / "fixtures" / "sentences.jsonl"
REAL = TESTS.parent / "benchmarks" / "data" / "iiw_docci_test.jsonl"
LEAST_RIGHT = 0.97
WORDS = ["the dog", "Dr.", "U.S.", "3.5", "Ein", "собака", "猫", "कुत्ता", "e.g.", "Yahoo!"]
MARKS = [*'.…。"“”「」—\n ', ". ", "! ", "?!", "... ", "। ", " (", ") ", "</s>", " 😀", ", "]
# Many places where a sentence could end, or quotes and brackets that never close.
PATHOLOGICAL = {
    "dots": ".",
    "stops without spaces": "a.",
    "spaced stops": ". ",
    "abbreviations": "Dr. ",
    "refused stops": "Dr. A. no. ",
    "open quotes": ' "a',
    "open brackets": " (a.",
    "nested": '(["“«',
    "glued quotes": '."N',
    "emoji": "😀 ",
    "stops and emoji": ".😀 ",
    "ideographs": "猫。」",
    "items": " 2. a",
    "bullets": "• ",
    "lines": "a\n",
}
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


def labelled_cases():
    # not splitlines(): some cases hold line separators of Unicode
    return [json.loads(line) for line in LABELLED.read_text("utf-8").split("\n") if line]


def real_captions():
    return [json.loads(line)["caption"] for line in REAL.read_text("utf-8").split("\n") if line]


def test_labelled_sentences_are_found():
    cases = labelled_cases()
    assert len(cases) >= 300
    wrong = [
        f"{case['topic']}: {case['text']!r}\n  asked {case['sentences']}\n  found {found}"
        for case in cases
        if (found := split_sentences(case["text"])) != case["sentences"]
    ]
    share = 1 - len(wrong) / len(cases)
    assert share >= LEAST_RIGHT, f"{share:.1%} right; wrong:\n" + "\n".join(wrong)


@pytest.mark.parametrize("text", ["", " . ", "...", "\n\n", "</s>", '"', "()", "😀"])
def test_text_without_a_word_has_no_sentence(text):
    assert split_sentences(text) == []


def test_short_pieces_are_dropped():
    assert split_sentences("A dog. It. A cat.", min_chars=3) == ["A dog", "A cat"]


def test_sentences_of_real_captions_stay_as_they_are():
    sentences = [s for caption in real_captions() for s in split_sentences(caption)]
    assert len(sentences) > 800
    assert [s for s in sentences if split_sentences(s) != [s]] == []


@given(st.lists(st.sampled_from(WORDS + MARKS), max_size=60))
def test_no_word_is_lost(tokens):
    text = "".join(tokens)
    kept = [c for c in text.replace("</s>", "") if c.isalnum()]
    assert [c for c in "".join(split_sentences(text)) if c.isalnum()] == kept


@given(st.text(max_size=200))
def test_sentences_stand_in_the_text_in_order(text):
    position = 0
    for sentence in split_sentences(text):
        found = text.find(sentence, position)
        assert found >= position
        position = found + len(sentence)


@given(st.lists(st.from_regex(r"[A-Z][a-z]{2,9}( [a-z]{3,9}){2,6}", fullmatch=True), min_size=1))
def test_plain_sentences_are_found_again(sentences):
    assert split_sentences(". ".join(sentences)) == sentences
    assert split_sentences("! ".join(sentences)) == [f"{s}!" for s in sentences[:-1]] + [
        sentences[-1]
    ]


def lines_run(text):
    """How many lines of Python run while `text` is split."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        split_sentences(text)
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("part", PATHOLOGICAL.values(), ids=PATHOLOGICAL)
def test_work_grows_with_the_text_only(part):
    assert lines_run(part * 2000) <= 2.1 * lines_run(part * 1000) + 100
    split_sentences(part * 200_000)  # quadratic searching would run into the test's time limit


@given(st.text(max_size=200))
def test_reference_mode_keeps_every_word_character(text):
    joined = "".join(split_sentences(text, "reference"))
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
