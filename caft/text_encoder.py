"""Part-to-whole text encoder: a causal Transformer per sub-caption, another over the chunks.
Token ids in, one embedding per part and one per whole caption out (model section 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from caft.config import TextConfig
from caft.layers import Block

NORM_EPS = 1e-5
MLP_RATIO = 4.0
LAYER_SCALE_INIT = 1e-3
MIN_ADAPTER_WIDTH = 64
LENGTH_GROUPS = 4


class PartTextEncoder(nn.Module):
    """CLIP's text Transformer; the embedding is read at the end token (the largest id)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Parameter(torch.empty(config.context_length, config.width))
        self.blocks = _causal_blocks(config.width, config.heads, config.layers)
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (N, T), T up to the context length, to embeddings (N, W).

        Sub-captions of similar length run together, each group no longer than its longest: most
        of a batch padded to its longest text would be padding.
        """
        end = tokens.argmax(dim=-1)  # (N,)
        order = end.argsort()
        embedded = [
            self._encode(tokens[rows, : int(end[rows[-1]]) + 1], end[rows])
            for rows in order.chunk(min(LENGTH_GROUPS, len(order)))
        ]
        return torch.cat(embedded)[order.argsort()]

    def _encode(self, tokens: Tensor, end: Tensor) -> Tensor:
        hidden = self.token_embedding(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            hidden = block(hidden, causal=True)
        return self.norm(hidden[torch.arange(len(tokens), device=tokens.device), end])


class WholeTextEncoder(nn.Module):
    """Joins the chunk embeddings of a caption; the appended cls token is the whole caption."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.chunks = config.chunks
        hidden = max(MIN_ADAPTER_WIDTH, config.width * 2 // 3)
        self.adapter = nn.Sequential(
            nn.Linear(config.width, hidden), nn.GELU(), nn.Linear(hidden, config.width)
        )
        self.adapter_scale = nn.Parameter(torch.full((config.width,), LAYER_SCALE_INIT))
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.positions = nn.Parameter(torch.empty(config.chunks + 1, config.width))
        self.blocks = _causal_blocks(config.width, config.whole_heads, config.whole_layers)
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        nn.init.normal_(self.cls_token, std=0.01)
        nn.init.normal_(self.positions, std=0.01)

    def forward(self, parts: Tensor) -> Tensor:
        """Chunk embeddings (B, chunks, W), in reading order, to whole-caption embeddings (B, W)."""
        adapted = parts + self.adapter_scale * self.adapter(parts)
        cls = self.cls_token.expand(len(parts), -1, -1)
        hidden = torch.cat([adapted, cls], dim=1) + self.positions  # (B, chunks + 1, W)
        for block in self.blocks:
            hidden = block(hidden, causal=True)
        return self.norm(hidden[:, -1])


def _causal_blocks(width: int, heads: int, layers: int) -> nn.ModuleList:
    """Blocks with CLIP's initial scales, which shrink with depth."""
    blocks = [Block(width, heads, MLP_RATIO, NORM_EPS) for _ in range(layers)]
    residual_std = width**-0.5 * (2 * layers) ** -0.5
    for block in blocks:
        nn.init.normal_(block.attn.qkv.weight, std=width**-0.5)
        nn.init.zeros_(block.attn.qkv.bias)
        nn.init.normal_(block.attn.proj.weight, std=residual_std)
        nn.init.zeros_(block.attn.proj.bias)
        nn.init.normal_(block.expand.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(block.contract.weight, std=residual_std)
    return nn.ModuleList(blocks)
