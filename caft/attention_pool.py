"""Text-conditioned attention pooling: a sub-caption gathers the fine segments it speaks of.
Shared by the part loss, the blended score and the sentence heat maps (model section 3)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-5


class AttentionPool(nn.Module):
    """One cross-attention with a zero slot: a query may attend to nothing at all.

    Losses read `queries`; scores and heat maps read `scoring_queries`.

    Queries depend on the text alone and keys and values on the image alone, so both are
    projected once and met afterwards.
    """

    def __init__(self, width: int, heads: int, unit_queries: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.unit_queries = unit_queries
        self.norm_q = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm_k = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm_v = nn.LayerNorm(width, eps=NORM_EPS)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)
        for linear in (self.to_q, self.to_k, self.to_v):
            # Xavier's bound of the three as one (3W, W) matrix, in which they were published.
            bound = math.sqrt(6 / (3 * width + width))
            nn.init.uniform_(linear.weight, -bound, bound)
            nn.init.zeros_(linear.bias)
        nn.init.zeros_(self.proj.bias)

    def queries(self, texts: Tensor) -> Tensor:
        """Project sub-captions (..., D); any leading shape."""
        return self.to_q(self.norm_q(texts))

    def scoring_queries(self, texts: Tensor) -> Tensor:
        """As `queries`, for scores and heat maps: of a released model, of sub-captions that are
        L2-normalised first, which the epsilon of the LayerNorm makes a little smaller."""
        return self.queries(F.normalize(texts, dim=-1) if self.unit_queries else texts)

    def keys_values(self, segments: Tensor) -> tuple[Tensor, Tensor]:
        """Project fine segments (B, M, D) and append the zero slot: two (B, heads, M + 1, d)."""
        keys = self._split(self.to_k(self.norm_k(segments)))
        values = self._split(self.to_v(self.norm_v(segments)))
        return F.pad(keys, (0, 0, 0, 1)), F.pad(values, (0, 0, 0, 1))

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Projected queries (B, Q, D) meet each image's keys and values: pooled (B, Q, D)."""
        mixed = F.scaled_dot_product_attention(self._split(queries), keys, values)
        return self.proj(mixed.transpose(1, 2).flatten(2))

    def attention(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Head-averaged attention (B, Q, M + 1); the last column is the zero slot."""
        q = self._split(queries)
        logits = torch.matmul(q, keys.transpose(-1, -2)) * q.shape[-1] ** -0.5
        return logits.softmax(dim=-1).mean(dim=1)

    def _split(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        return tokens.view(batch, count, self.heads, width // self.heads).transpose(1, 2)
