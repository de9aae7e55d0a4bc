"""Variants of captions: each changes what its name says, and nothing else."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caft.config import validate
from caft.errors import ConfigError, DataError
from caft.tokenizer import load_tokenizer
from pipelines.evaluate.controls import ControlsConfig, first_tokens, noisy, variants

CAPTIONS = (
    ("A red barn", "It has two doors", "Snow lies on the roof"),
    ("One sentence only",),
    ("A dog", "A cat", "A bird", "A fish"),
    ("The sea", "A boat"),
)
OWNERS = (0, 0, 1, 2)

sentence = st.text(alphabet="abc déÉ", min_size=1, max_size=12).filter(lambda text: text.strip())
captions = st.lists(st.lists(sentence, min_size=1, max_size=7).map(tuple), min_size=2, max_size=6)


def by_name(**config):
    made = variants(ControlsConfig(**config), CAPTIONS, OWNERS, seed=0)
    return {variant.name: variant for variant in made}


def test_the_order_of_sentences():
    found = by_name(order=True)
    dropped = found["first_sentence_dropped"]
    assert dropped.captions[0] == CAPTIONS[0][1:]
    assert dropped.captions[1] == CAPTIONS[1]  # nothing would be left
    assert dropped.changed_share(CAPTIONS) == 0.75
    assert found["first_sentence_last"].captions[3] == ("A boat", "The sea")
    shuffled = found["sentences_shuffled"].captions
    assert shuffled != CAPTIONS
    assert [Counter(c) for c in shuffled] == [Counter(c) for c in CAPTIONS]
    assert by_name(order=True)["sentences_shuffled"].captions == shuffled


@settings(max_examples=50)
@given(captions, st.floats(0.01, 1), st.integers(0, 5))
def test_noise_replaces_its_share_by_sentences_of_other_images(texts, share, seed):
    owners = [n // 2 for n in range(len(texts) - 1)] + [99]
    changed = noisy(texts, owners, share, seed)
    for n, (before, after) in enumerate(zip(texts, changed, strict=True)):
        others = {s for m, text in enumerate(texts) for s in text if owners[m] != owners[n]}
        different = [b for a, b in zip(before, after, strict=True) if a != b]
        assert len(different) <= round(share * len(before))
        assert set(different) <= others


def test_a_larger_share_is_noisier():
    found = by_name(noisy_shares=(0.25, 0.5, 1.0))
    kept = [
        sum(a == b for a, b in zip(found[name].captions[2], CAPTIONS[2], strict=True))
        for name in ("noisy_0.25", "noisy_0.5", "noisy_1")
    ]
    assert kept == [3, 2, 0]


def test_one_image_has_no_noise_to_draw_from():
    with pytest.raises(DataError, match="one image"):
        noisy(CAPTIONS, (0, 0, 0, 0), 0.5, 0)


def test_the_first_sentences():
    found = by_name(first_sentences=(1, 3))
    assert found["first_1_sentences"].captions[2] == ("A dog",)
    assert found["first_3_sentences"].captions[2] == CAPTIONS[2][:3]
    assert found["first_3_sentences"].changed_share(CAPTIONS) == 0.25


@settings(max_examples=50)
@given(captions, st.integers(1, 20))
def test_the_first_tokens_are_a_beginning_of_the_caption_within_their_number(texts, most):
    tokenizer = load_tokenizer("clip")
    for before, after in zip(texts, first_tokens(texts, most), strict=True):
        words = [word for s in before for word in s.split()]
        kept = [word for s in after for word in s.split()]
        assert kept == words[: len(kept)]
        lengths = [int(tokenizer([word], 99).argmax()) - 1 for word in words]
        assert len(kept) == 1 or sum(lengths[: len(kept)]) <= most
        if len(kept) < len(words):  # and no further word would fit
            assert sum(lengths[: len(kept) + 1]) > most


def test_the_same_seed_draws_the_same_noise_whatever_else_is_asked():
    alone = by_name(noisy_shares=(0.5,))["noisy_0.5"]
    among = by_name(order=True, noisy_shares=(0.2, 0.5), first_sentences=(1,))["noisy_0.5"]
    assert alone == among
    other = next(variants(ControlsConfig(noisy_shares=(0.5,)), CAPTIONS, OWNERS, seed=1))
    assert other.captions != alone.captions


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"noisy_shares": [0]}, "noisy_shares: a share lies above 0"),
        ({"first_tokens": [0]}, "first_tokens: a length is at least 1"),
    ],
)
def test_impossible_controls_are_refused(config, said):
    with pytest.raises(ConfigError, match=said):
        validate(ControlsConfig, config, "evaluate.yaml")
