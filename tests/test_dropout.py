"""Dropout by name: what a mask depends on, and what it does not."""

import pytest
import torch

from caft.dropout import NUMBERS, Draws, NamedDropout, random_numbers


def draws_of(seed: int, images: torch.Tensor) -> Draws:
    return Draws(torch.tensor(seed), images)


def test_a_mask_is_the_image_s_own_whatever_it_is_computed_with():
    together = random_numbers(draws_of(5, torch.arange(12)), 7, 10)
    assert together.shape == (12, 7, 10)
    shares = [random_numbers(share, 7, 10) for share in draws_of(5, torch.arange(12)).chunk(3)]
    assert torch.equal(torch.cat(shares), together)
    alone = random_numbers(draws_of(5, torch.tensor([9])), 7, 10)
    assert torch.equal(alone[0], together[9])


def test_steps_images_levels_tokens_and_columns_draw_independently():
    draws = draws_of(1, torch.arange(40))
    base = random_numbers(draws, 64, 64).double()
    shifted = {
        "step": (base, random_numbers(draws_of(2, draws.images), 64, 64).double()),
        "level": (base, random_numbers(draws.stream(1), 64, 64).double()),
        "image": (base[1:], base[:-1]),
        "token": (base[:, 1:], base[:, :-1]),
        **{f"column {k}": (base[..., k:], base[..., :-k]) for k in (1, 2, 3, 4)},
    }
    for name, pair in shifted.items():
        correlation = torch.corrcoef(torch.stack([one.flatten() for one in pair]))[0, 1]
        assert correlation.abs() < 5 / base.numel() ** 0.5, name


def test_numbers_are_uniform_in_each_column_of_a_hash():
    numbers = random_numbers(draws_of(3, torch.arange(64)), 64, 64).long() + NUMBERS // 2
    for lane in range(4):
        share = numbers[..., lane::4].flatten() // (NUMBERS // 16)
        counts = torch.bincount(share, minlength=16).double()
        expected = share.numel() / 16
        chi_squared = ((counts - expected) ** 2 / expected).sum()  # 15 +- 5.5 if they are
        assert chi_squared < 45, lane


def test_dropout_drops_its_share_and_keeps_the_mean():
    dropout = NamedDropout(0.1)
    tokens = torch.ones(32, 16, 128, requires_grad=True)
    dropped = dropout(tokens, draws_of(0, torch.arange(32)))
    assert (dropped == 0).double().mean() == pytest.approx(0.1, abs=0.005)
    assert dropped.mean().item() == pytest.approx(1, abs=0.005)
    dropped.sum().backward()
    assert torch.equal(tokens.grad, dropped.detach())


def test_without_names_it_is_torch_s_and_in_evaluation_nothing_happens():
    dropout = NamedDropout(0.5)
    tokens = torch.ones(2, 3, 8)
    torch.manual_seed(0)
    ours = dropout(tokens, None)
    torch.manual_seed(0)
    assert torch.equal(ours, torch.nn.functional.dropout(tokens, 0.5))
    dropout.eval()
    assert torch.equal(dropout(tokens, None), tokens)
    assert torch.equal(dropout(tokens, draws_of(0, torch.arange(2))), tokens)
