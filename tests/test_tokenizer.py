"""Tokenizers: known CLIP ids, end token kept, padding."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caft.errors import ConfigError
from caft.tokenizer import load_tokenizer


def test_clip_ids_are_openai_s():
    tokens = load_tokenizer("clip")(["a photo of a cat", "Hello, world!"], 77)
    assert tokens[0].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokens[1].tolist() == [49406, 3306, 267, 1002, 256, 49407, 0]


@pytest.mark.parametrize("name", ["clip", "demo"])
@given(text=st.text(max_size=120), length=st.integers(3, 20))
def test_the_end_token_is_kept_and_is_the_largest_id(name, text, length):
    tokenizer = load_tokenizer(name)
    (row,) = tokenizer([text], length)
    assert len(row) <= length
    assert row[0] == tokenizer.vocab_size - 2
    assert row[-1] == row.max() == tokenizer.vocab_size - 1


def test_unknown_tokenizer_names_the_known():
    with pytest.raises(ConfigError, match="known: clip, demo"):
        load_tokenizer("gpt")
