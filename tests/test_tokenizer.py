"""Tokenizers: OpenAI's ids for CLIP, end token kept, padding."""

import html
import json
from pathlib import Path

import ftfy
import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from make_clip_ids import digest, iiw_captions

from caft.errors import ConfigError
from caft.tokenizer import ASSET_DIR, clean_text, load_tokenizer

FIXTURE = json.loads((Path(__file__).parent / "fixtures" / "clip_ids.json").read_text())
IIW = Path(__file__).resolve().parents[2] / "shared" / "data" / "iiw"
LONGER_THAN_ANY = 10_000


def test_clip_ids_are_openai_s():
    tokens = load_tokenizer("clip")(["a photo of a cat", "Hello, world!"], 77)
    assert tokens[0].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokens[1].tolist() == [49406, 3306, 267, 1002, 256, 49407, 0]


@pytest.mark.parametrize("kind", ["captions", "hard"])
def test_captions_and_hard_strings_get_openai_s_ids(kind):
    tokenizer = load_tokenizer("clip")
    for text, ids in FIXTURE[kind]:
        assert tokenizer([text], LONGER_THAN_ANY)[0].tolist() == ids, text


@pytest.mark.skipif(not IIW.exists(), reason="the ImageInWords captions are not here")
def test_a_thousand_captions_get_openai_s_ids():
    captions, tokenizer = iiw_captions(IIW), load_tokenizer("clip")
    assert len(captions) == FIXTURE["iiw_captions"] == 1000
    rows = (tokenizer([text], LONGER_THAN_ANY)[0].tolist() for text in captions)
    assert digest(rows) == FIXTURE["iiw_sha256"]


@pytest.mark.parametrize("length", [3, 16, 77])
def test_a_long_caption_is_cut_before_its_end_token(length):
    text, ids = max(FIXTURE["captions"], key=lambda entry: len(entry[1]))
    (row,) = load_tokenizer("clip")([text], length).tolist()
    assert row == [*ids[: length - 1], ids[-1]]


@pytest.mark.parametrize("text", ["<|endoftext|>", "<|startoftext|>", "<end_of_text>"])
def test_a_caption_cannot_write_the_special_tokens(text):
    (row,) = load_tokenizer("clip")([f"a {text} b"], 77).tolist()
    assert max(row[1:-1]) < 49406


@pytest.mark.parametrize("name", ["clip", "demo"])
@given(text=st.text(max_size=120), length=st.integers(3, 20))
def test_the_end_token_is_kept_and_is_the_largest_id(name, text, length):
    tokenizer = load_tokenizer(name)
    (row,) = tokenizer([text], length)
    assert len(row) <= length
    assert row[0] == tokenizer.vocab_size - 2
    assert row[-1] == row.max() == tokenizer.vocab_size - 1


WORDS = st.sampled_from(["a", "the cat's", "'s", ".'d", "3 dogs,", "é", "\u0345", "“so”", "&amp;"])


@pytest.mark.parametrize("name", ["clip", "demo"])
@given(texts=st.lists(st.lists(WORDS | st.text(max_size=12), max_size=9).map(" ".join)))
def test_words_give_the_ids_that_their_whole_text_gives(name, texts):
    encoder = tokenizers.Tokenizer.from_file(str(ASSET_DIR / f"{name}.json"))
    rows = load_tokenizer(name)(texts, LONGER_THAN_ANY).tolist()
    for text, row in zip(texts, rows, strict=True):
        whole = encoder.encode(clean_text(text), add_special_tokens=False).ids
        assert row[1 : len(whole) + 1] == whole


@given(text=st.text(st.characters(max_codepoint=127) | st.sampled_from("‘’“”"), max_size=60))
@example("a\x1b[31mred\x7f\x0c b \r\n c")
def test_plain_text_is_cleaned_as_any_other(text):
    repaired = html.unescape(html.unescape(ftfy.fix_text(text)))
    assert clean_text(text) == " ".join(repaired.split()).lower()


def test_unknown_tokenizer_names_the_known():
    with pytest.raises(ConfigError, match="known: clip, demo"):
        load_tokenizer("gpt")
