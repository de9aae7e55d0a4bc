"""Graph pooling: N tokens become M segments around M farthest-point seeds (model section 1).
Used between the groups of the image encoder; the soft assignments are the image's segmentation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caft.dropout import Draws, NamedDropout
from caft.layers import SelfAttention

ASSIGNMENT_SCALE = 5.0  # the cosine is multiplied by this before the softmax over segments
SMALLEST = 1e-30  # keeps tokens that are all the same from dividing by zero
DISTANCE_STEPS = 2.0**38  # in which distances are told apart, of the largest one from the mean
JOINED = 8  # columns that are concatenated at once
GROUP_NORM_EPS = 1e-6
MLP_NORM_EPS = 1e-5
GROUP_BIAS_STD = 0.01  # at the start


class GraphPool(nn.Module):
    """Pools (B, N, D) tokens to (B, M, D) segments; the cls token passes the same MLP."""

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, segments: int, dropout: float
    ) -> None:
        super().__init__()
        self.segments = segments
        self.group_norm = nn.LayerNorm(width, eps=GROUP_NORM_EPS)
        self.group_attn = SelfAttention(width, heads)
        self.group_bias = nn.Parameter(torch.empty(width))
        nn.init.normal_(self.group_bias, std=GROUP_BIAS_STD)
        hidden = int(width * mlp_ratio)
        self.expand = nn.Sequential(
            nn.LayerNorm(width, eps=MLP_NORM_EPS), nn.Linear(width, hidden), nn.GELU()
        )
        self.dropout = NamedDropout(dropout)
        self.contract = nn.Sequential(
            nn.LayerNorm(hidden, eps=MLP_NORM_EPS), nn.Linear(hidden, width)
        )

    def forward(
        self,
        cls: Tensor,
        tokens: Tensor,
        live: Tensor | None = None,
        keep_dead: bool = False,
        draws: Draws | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns cls (B, 1, D), segments (B, M, D) and soft assignments (B, N, M).

        `live` (B, N) is false for dead superpixels. They neither seed a segment nor weigh in one,
        unless `keep_dead` asks for the reference's way: then only the mean leaves them out.
        `draws` says what dropout drops; None: torch's generator.
        """
        seeds = farthest_point_seeds(tokens, self.segments, live, keep_dead)  # (B, M)
        mask = None if keep_dead else live
        assignment = self.assignment_logits(tokens, seeds, mask).softmax(dim=-1)  # (B, N, M)
        weights = assignment if mask is None else assignment * mask[:, :, None]
        weights = weights / weights.sum(dim=1, keepdim=True)  # mean over the tokens of a segment
        hidden = self.dropout(self.expand(torch.cat([cls, tokens], dim=1)), draws)  # (B, 1 + N, 4D)
        of_cls, of_tokens = hidden.split([1, tokens.shape[1]], dim=1)
        values = torch.bmm(weights.transpose(1, 2), of_tokens)  # (B, M, 4D)
        contracted = self.contract(torch.cat([of_cls, values], dim=1))  # (B, 1 + M, D)
        segments = contracted[:, 1:] + take_tokens(tokens, seeds)  # (B, M, D)
        return cls + contracted[:, :1], segments, assignment

    def assignment_logits(self, tokens: Tensor, seeds: Tensor, mask: Tensor | None) -> Tensor:
        """Scaled cosine of every token with every seed, on grouping features: (B, N, M)."""
        key_mask = None if mask is None else mask[:, None, None]
        grouped = tokens + self.group_attn(self.group_norm(tokens), key_mask)
        grouped = grouped - _masked_mean(grouped, mask) + self.group_bias
        grouped = F.normalize(grouped, dim=-1)
        return ASSIGNMENT_SCALE * torch.bmm(grouped, take_tokens(grouped, seeds).transpose(1, 2))


@torch.no_grad()
def farthest_point_seeds(
    tokens: Tensor, count: int, live: Tensor | None = None, keep_dead: bool = False
) -> Tensor:
    """Indices (B, count) of tokens (B, N, D) picked farthest-first from the mean of the live ones.

    Distances come from one Gram matrix in float64, so each pick costs a row look-up and no pass
    over D, and the picks are those of float64 throughout.
    """
    centred = tokens.double()
    centred = centred - _masked_mean(centred, live)  # the mean becomes the origin
    gram = torch.bmm(centred, centred.transpose(1, 2))
    # Rounded, because copies of a token must tie whatever order the product summed them in.
    largest = gram.diagonal(dim1=1, dim2=2).amax(dim=1)[:, None, None].clamp_min(SMALLEST)
    gram = (gram * (DISTANCE_STEPS / largest)).round()
    squared = gram.diagonal(dim1=1, dim2=2)  # (B, N): squared distance from the mean
    pairwise = squared[:, :, None] + squared[:, None, :] - 2 * gram  # (B, N, N)
    distance = squared
    if live is not None and not keep_dead:
        distance = squared.masked_fill(~live, -1.0)
    seeds = []
    for _ in range(count):
        seeds.append(distance.argmax(dim=-1, keepdim=True))  # (B, 1)
        row = seeds[-1][:, :, None].expand(-1, -1, pairwise.shape[-1])
        distance = torch.minimum(distance, pairwise.gather(1, row)[:, 0])
    # In groups, because a compiler makes one kernel of few columns and one of each of many.
    groups = [torch.cat(seeds[n : n + JOINED], dim=1) for n in range(0, count, JOINED)]
    return torch.cat(groups, dim=1)


def take_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Select (B, M, D) of (B, N, D) by per-row indices (B, M)."""
    return tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.shape[-1]))


def _masked_mean(tokens: Tensor, live: Tensor | None) -> Tensor:
    """Mean over tokens, (B, 1, D), of the live ones alone."""
    if live is None:
        return tokens.mean(dim=1, keepdim=True)
    weights = live[:, :, None].to(tokens.dtype)
    return (tokens * weights).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True)
