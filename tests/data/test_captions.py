"""Captions of a row of the data stage: split, kept, or the reason why there is none."""

import pytest

from pipelines.data.captions import split_captions
from pipelines.data.config import CaptionConfig
from pipelines.data.reasons import REASONS


def row_of(*texts, reason=None):
    return {"texts": list(texts), "reason": reason, "detail": "", "notes": set()}


def entry(*texts, source="alt", kind="raw", sentences=False):
    return {"source": source, "kind": kind, "texts": list(texts), "sentences": sentences}


def test_every_text_of_every_column_is_split():
    row = row_of(
        entry("A dog."),
        entry("Dr. Lee waves. He smiles.", "A cat sits.\nIt purrs.", source="llava", kind="long"),
    )
    split_captions(row, CaptionConfig())
    assert row["reason"] is None
    assert row["captions"] == [
        {"source": "alt", "kind": "raw", "sentences": ["A dog"]},
        {
            "source": "llava",
            "kind": "long",
            "sentences": ["Dr. Lee waves", "He smiles", "A cat sits", "It purrs"],
        },
    ]


def test_mode_and_least_length_are_the_configuration_s():
    row = row_of(entry("It is 3.5 m high. Ok."))
    split_captions(row, CaptionConfig(split_mode="reference", min_chars=4))
    assert row["captions"][0]["sentences"] == ["It is 3", "5 m high"]


def test_sentences_of_our_own_datasets_are_not_split_again():
    row = row_of(entry("A dog. A cat.", "no", sentences=True))
    split_captions(row, CaptionConfig(min_chars=10))
    assert row["captions"][0]["sentences"] == ["A dog. A cat.", "no"]


def test_a_caption_without_a_sentence_is_left_out():
    row = row_of(entry("..."), entry("A dog.", source="short"))
    split_captions(row, CaptionConfig())
    assert [caption["source"] for caption in row["captions"]] == ["short"]


@pytest.mark.parametrize(
    "texts",
    [
        [],
        [entry()],
        [entry("", " . ")],
        [entry("ok")],
        [entry(sentences=True)],
    ],
)
def test_a_row_without_a_sentence_is_rejected(texts):
    row = row_of(*texts)
    split_captions(row, CaptionConfig())
    assert row["reason"] == "no_caption"
    assert row["reason"] in REASONS
    assert row["detail"] == "no sentence of 3 or more characters"


def test_a_rejected_row_is_left_alone():
    row = row_of(entry("A dog."), reason="timeout")
    before = dict(row)
    split_captions(row, CaptionConfig())
    assert row == before
