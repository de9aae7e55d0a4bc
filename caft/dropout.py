"""Dropout whose masks name themselves: a hash of step, image and place, and no generator's state.
Used by the graph pools, so that a global batch drops the same however it is cut into workers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# A hash gives four numbers of 16 bits: a quarter of the work, and fine enough for a probability.
NUMBERS_PER_HASH, NUMBERS = 4, 2**16
# The multipliers of SplitMix64, as signed integers.
GOLDEN, FIRST, SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685


# Streams of draws beside the image encoder's, which has one for each level.
NEGATIVES = -1


@dataclass(frozen=True)
class Draws:
    """Names all random draws of B images in one training step."""

    seed: Tensor  # () int64
    images: Tensor  # (B,) int64: the place of each image in the global batch

    def stream(self, number: int) -> Draws:
        """Draws of the same images that are independent of these."""
        return Draws(_mixed(self.seed + number), self.images)

    def chunk(self, count: int) -> list[Draws]:
        """The draws of `count` equal consecutive shares of the images."""
        return [Draws(self.seed, images) for images in self.images.chunk(count)]


class NamedDropout(nn.Module):
    """Dropout of (B, N, D) tokens by `Draws`; without any, by torch's generator."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, tokens: Tensor, draws: Draws | None) -> Tensor:
        if not self.training or not self.probability:
            return tokens
        if draws is None:
            return F.dropout(tokens, self.probability)
        dropped = round(self.probability * NUMBERS)
        drop = random_numbers(draws, *tokens.shape[1:]) < dropped - NUMBERS // 2
        return tokens.masked_fill(drop, 0.0) * (NUMBERS / (NUMBERS - dropped))


def random_numbers(draws: Draws, tokens: int, width: int) -> Tensor:
    """Uniform int16 (B, tokens, width), the same on every device and for every split of the images.

    Each is a function of the seed, its image's number, its token's number and its column.
    """
    hashes = -(-width // NUMBERS_PER_HASH)
    key = _mixed(_mixed(draws.images) + draws.seed)  # (B,)
    place = torch.arange(tokens * hashes, device=key.device)
    bits = _mixed(key[:, None] + place * GOLDEN)  # (B, tokens * hashes)
    numbers = bits.view(torch.int16).view(len(key), tokens, hashes * NUMBERS_PER_HASH)
    return numbers[:, :, :width]


def _mixed(value: Tensor) -> Tensor:
    """Spread each bit of int64 values over all others. Products wrap, and shifts copy the sign,
    which costs two bits of 64 and saves two passes; the last shift must not."""
    value = (value ^ (value >> 30)) * FIRST
    value = (value ^ (value >> 27)) * SECOND
    return value ^ ((value >> 31) & 0x1FFFFFFFF)
