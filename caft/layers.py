"""The pre-norm Transformer block that both encoders stack.
Lowest layer of the model: knows nothing of images, text or superpixels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from caft.packing import Spans


class SelfAttention(nn.Module):
    """Multi-head self-attention over (B, N, D) tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self, tokens: Tensor, mask: Tensor | Spans | None = None, causal: bool = False
    ) -> Tensor:
        """`mask` is true where a query may attend, broadcast to (B, heads, N, N), or says it by
        spans of the B*N tokens; None: all."""
        return self.proj(self.mix(tokens, mask, causal))

    def mix(
        self, tokens: Tensor, mask: Tensor | Spans | None = None, causal: bool = False
    ) -> Tensor:
        """Attention without its output projection: (B, N, D)."""
        batch, count, width = tokens.shape
        qkv = self.qkv(tokens).view(batch, count, 3, self.heads, width // self.heads)
        if isinstance(mask, Spans):
            return attend_in_spans(qkv.flatten(0, 1), mask).view(batch, count, width)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, N, D/heads)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return mixed.transpose(1, 2).reshape(batch, count, width)


def attend_in_spans(qkv: Tensor, spans: Spans) -> Tensor:
    """Causal attention of (T, 3, heads, d) queries, keys and values, each in its own span, by the
    kernel that CUDA has for it: (T, heads, d)."""
    from torch.nn.attention.varlen import varlen_attn  # here, because it loads torch's compiler

    q, k, v = qkv.unbind(1)
    bounds, longest = spans
    mixed = varlen_attn(q, k, v, bounds, bounds, longest, longest, window_size=(-1, 0))
    assert isinstance(mixed, Tensor)  # nothing else was asked for
    return mixed


def product_dtype(tokens: Tensor) -> torch.dtype:
    """Of what a linear layer makes of `tokens`, under autocast or without."""
    device = tokens.device.type
    autocast = torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if autocast else tokens.dtype


def quick_gelu(values: Tensor) -> Tensor:
    """The approximation that OpenAI's CLIP was trained with."""
    return values * torch.sigmoid(1.702 * values)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "quick_gelu": quick_gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


class Block(nn.Module):
    """Pre-norm attention and MLP, each with a residual."""

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, norm_eps: float, activation: str = "gelu"
    ) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        hidden = int(width * mlp_ratio)
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor | Spans | None = None,
        causal: bool = False,
        keep: Tensor | None = None,
    ) -> Tensor:
        """(B, N, D) tokens; `mask` as in `SelfAttention`.

        With `keep` (M,), indices into the B*N tokens, all tokens are attended to and only these
        are computed to the end: (M, D). What a last layer is not asked for costs nothing.
        """
        mixed = self.attn.mix(self.norm1(tokens), mask, causal)
        if keep is not None:
            tokens, mixed = tokens.flatten(0, 1)[keep], mixed.flatten(0, 1)[keep]
        tokens = tokens + self.attn.proj(mixed)
        return tokens + self.contract(self.activation(self.expand(self.norm2(tokens))))


class Blocks(nn.ModuleList):
    """Blocks in a row. With `recompute` each keeps its input alone and runs again in backward;
    one at a time, because a block's inside is some fifteen times as large as its input. With
    `low_residuals` the residual stream has the precision of products, half the bytes in bfloat16.
    """

    recompute = False
    low_residuals = False

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor | Spans | None = None,
        causal: bool = False,
        keep: Tensor | None = None,
    ) -> Tensor:
        """As `Block`; `keep` applies to the last one."""
        if self.low_residuals:
            tokens = tokens.to(product_dtype(tokens))
        for n, block in enumerate(self):
            kept = keep if n == len(self) - 1 else None
            if self.recompute and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, mask, causal, kept, use_reentrant=False)
            else:
                tokens = block(tokens, mask, causal, kept)
        return tokens


def init_linear(module: nn.Module) -> None:
    """Truncated-normal weights (std 0.02) and zero biases, as ViT is trained from scratch."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def projection(width_in: int, width_out: int) -> nn.Parameter:
    """A bias-free (width_in, width_out) projection with CLIP's initial scale."""
    return nn.Parameter(torch.randn(width_in, width_out) * width_in**-0.5)
