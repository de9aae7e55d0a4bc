"""Batch normalisation on blocks: torch's on each of them, stable, and counted once."""

from functools import partial

import pytest
import torch
from torch import nn

from caft.batch_norm import (
    BlockBatchNorm,
    NormBlocks,
    batch_statistics,
    set_norm_blocks,
    update_running_statistics_,
)


def images_of(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 5, 4, 4, generator=generator, dtype=torch.float32)
    images = images * torch.linspace(0.1, 3, count)[:, None, None, None] + 100
    return images.contiguous(memory_format=torch.channels_last).requires_grad_()


@pytest.fixture
def norm() -> BlockBatchNorm:
    torch.manual_seed(0)
    norm = BlockBatchNorm(5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def test_each_block_is_normalised_as_torch_does(norm):
    plain = nn.BatchNorm2d(5)
    plain.load_state_dict(norm.state_dict())
    images = images_of(6)
    set_norm_blocks(norm, NormBlocks(2))
    ours = norm(images)
    expected = torch.cat([plain(block) for block in images.split(2)])
    torch.testing.assert_close(ours, expected)
    assert ours.is_contiguous(memory_format=torch.channels_last)


def test_without_blocks_it_is_torch_s_batch_norm(norm):
    plain = nn.BatchNorm2d(5)
    plain.load_state_dict(norm.state_dict())
    images = images_of(6)
    assert torch.equal(norm(images), plain(images))
    for name, value in plain.state_dict().items():
        assert torch.equal(norm.state_dict()[name], value), name
    norm.eval()
    plain.eval()
    assert torch.equal(norm(images), plain(images))


def test_running_statistics_average_the_blocks_and_wait_to_be_told(norm):
    images = images_of(6)
    set_norm_blocks(norm, NormBlocks(2))
    norm(images)
    norm(images)
    assert norm.num_batches_tracked == 0
    statistics = batch_statistics(norm)
    blocks = images.detach().unflatten(0, (3, 2)).transpose(1, 2).flatten(2)  # (3, C, 2 * h * w)
    torch.testing.assert_close(statistics[0], blocks.mean(dim=2).mean(dim=0))
    torch.testing.assert_close(statistics[1], blocks.var(dim=2).mean(dim=0))
    update_running_statistics_(norm, statistics)
    assert norm.num_batches_tracked == 1
    torch.testing.assert_close(norm.running_mean, 0.1 * statistics[0])
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * statistics[1])


def send(sent: list[torch.Tensor], workers: int, own: torch.Tensor) -> torch.Tensor:
    sent.append(own)
    return own.repeat(workers, 1, 1)  # others answer in the second round


@pytest.mark.parametrize(("count", "block", "workers"), [(12, 12, 3), (12, 4, 2), (12, 6, 4)])
def test_blocks_that_span_workers_are_normalised_as_on_one(norm, count, block, workers):
    """Workers in turn, each with what the others would have sent."""
    images = images_of(count)
    set_norm_blocks(norm, NormBlocks(block))
    expected = norm(images)
    statistics = batch_statistics(norm)
    weights = torch.randn_like(expected)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), images)

    sent: list[torch.Tensor] = []
    shares = images.chunk(workers)
    for rank in range(workers):  # first round: what each worker knows of its pieces
        set_norm_blocks(norm, NormBlocks(block, rank, partial(send, sent, workers)))
        norm(shares[rank])
    ours = []
    for rank in range(workers):
        set_norm_blocks(norm, NormBlocks(block, rank, lambda own: torch.cat(sent)))
        ours.append(norm(shares[rank]))
        torch.testing.assert_close(batch_statistics(norm), statistics)
    ours = torch.cat(ours)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    (gradient,) = torch.autograd.grad((ours * weights).sum(), images)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "blocks", [NormBlocks(4), NormBlocks(8, 0, lambda own: torch.cat([own, own]))]
)
def test_a_large_mean_costs_no_precision(norm, blocks):
    """Squares of 1000 +- 0.01 differ in digits that float32 does not have. The second worker, where
    there is one, has the same images."""
    images = images_of(4).detach() * 0.01 + 1000
    exact = nn.functional.batch_norm(images.double(), None, None, training=True, eps=norm.eps)
    nn.init.ones_(norm.weight)
    nn.init.zeros_(norm.bias)
    set_norm_blocks(norm, blocks)
    assert (norm(images) - exact).abs().max() < 0.02


def test_a_share_that_fits_no_block_is_named(norm):
    set_norm_blocks(norm, NormBlocks(4))
    with pytest.raises(ValueError, match="6 images of all workers are no multiple of a block of 4"):
        norm(images_of(6))
