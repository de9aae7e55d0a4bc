"""Packing of sub-captions: nothing lost, nothing read across texts, equal to one text at a time."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests_support import tiny_config

import caft
from caft.packing import EMPTY, pack_texts

END = 99
lengths = st.lists(st.integers(2, 16), min_size=1, max_size=40)


def texts_of(sizes, parts=1):
    """Distinct tokens (B, K, 16) with an end token at each size - 1, zeros after it."""
    tokens = torch.zeros(len(sizes), 16, dtype=torch.long)
    for row, size in zip(tokens, sizes, strict=True):
        row[: size - 1] = torch.randint(1, END, (size - 1,))
        row[size - 1] = END
    return tokens.view(-1, parts, 16)


@given(sizes=lengths, multiple=st.integers(1, 5), row=st.integers(16, 64))
def test_every_token_has_exactly_one_place(sizes, multiple, row):
    tokens = texts_of(sizes)
    packed = pack_texts(tokens, row, multiple)
    rows, length = packed.tokens.shape
    assert length == min(row, sum(sizes))
    assert rows % multiple == 0
    for n, size in enumerate(sizes):
        mine = packed.owners == n
        assert mine.any(dim=1).sum() == 1  # in one row
        assert packed.tokens[mine].tolist() == tokens[n, 0, :size].tolist()
        assert packed.positions[mine].tolist() == list(range(size))
        assert packed.tokens.flatten()[packed.ends[n]] == END
    assert (packed.owners == EMPTY).sum() == rows * length - sum(sizes)


def test_rows_of_captions_are_nearly_full():
    sizes = torch.randint(10, 60, (500,)).tolist()
    tokens = torch.zeros(500, 1, 77, dtype=torch.long)
    for row, size in zip(tokens[:, 0], sizes, strict=True):
        row[:size] = torch.arange(1, size + 1)
    packed = pack_texts(tokens, 154)
    assert sum(sizes) / packed.tokens.numel() > 0.95


@given(sizes=lengths, seed=st.integers(0, 99))
def test_embeddings_are_those_of_each_text_read_alone(sizes, seed):
    torch.manual_seed(seed)
    model = caft.create_model(tiny_config()).eval()
    tokens = texts_of(sizes)
    with torch.no_grad():
        packed = model.part_text_encoder(model.part_text_encoder.pack(tokens, row_multiple=2))
        for n, size in enumerate(sizes):
            alone = model.part_text_encoder.pack(tokens[n : n + 1, :, :size])
            torch.testing.assert_close(
                packed[n : n + 1], model.part_text_encoder(alone), rtol=1e-5, atol=1e-5
            )


def test_packed_and_padded_captions_have_the_same_features_and_gradients():
    torch.manual_seed(0)
    model = caft.create_model(tiny_config())
    tokens = texts_of([3, 9, 5, 16, 2, 7, 12, 4], parts=4)
    gradients = []
    for given_tokens in (tokens, model.part_text_encoder.pack(tokens, row_multiple=4)):
        model.zero_grad()
        features = model.encode_text(given_tokens)
        (features.parts.square().sum() + features.whole.sum()).backward()
        gradients.append(model.part_text_encoder.token_embedding.weight.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-5)


def test_a_text_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="a text of 16 tokens does not fit a row of 8"):
        pack_texts(texts_of([16, 16]), 8)
