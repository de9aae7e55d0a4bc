"""Part-to-whole text encoder: a causal Transformer per sub-caption, another over the chunks.
Token ids in, one embedding per part and one per whole caption out (model section 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caft.config import TextConfig
from caft.layers import Block, Blocks, product_dtype
from caft.packing import PackedTexts, pack_texts

NORM_EPS = 1e-5
MLP_RATIO = 4.0
LAYER_SCALE_INIT = 1e-3
MIN_ADAPTER_WIDTH = 64
CONTEXTS_PER_ROW = 2  # of packed text: longer rows fill better, and their attention costs more


class PartTextEncoder(nn.Module):
    """CLIP's text Transformer; the embedding is read at the end token (the largest id)."""

    def __init__(self, config: TextConfig, activation: str = "gelu") -> None:
        super().__init__()
        self.row_length = CONTEXTS_PER_ROW * config.context_length
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Parameter(torch.empty(config.context_length, config.width))
        self.blocks = _causal_blocks(config.width, config.heads, config.layers, activation)
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)

    def pack(self, tokens: Tensor, row_multiple: int = 1, least_rows: int = 1) -> PackedTexts:
        """Token ids (B, K, T) laid out as this encoder reads them; see `pack_texts`."""
        return pack_texts(tokens, self.row_length, row_multiple, least_rows)

    def forward(self, texts: PackedTexts) -> Tensor:
        """Embeddings (B*K, W) of B captions of K sub-captions. Equal to reading each one alone:
        nothing attends to another text, nor to what comes later in its own."""
        hidden = self.token_embedding(texts.tokens)  # (R, L, W)
        hidden = hidden + F.embedding(texts.positions, self.positions)
        attended = texts.attended(product_dtype(hidden))
        return self.norm(self.blocks(hidden, attended, keep=texts.ends))

    def padded(self, tokens: Tensor) -> Tensor:
        """As `forward`, of ids (B, K, T) with their padding: of fixed shape, for graphs that are
        exported; what stands after a text's end is attended to by nothing that is read."""
        ids = tokens.flatten(0, 1)  # (N, T)
        hidden = self.token_embedding(ids) + self.positions[: ids.shape[1]]  # (N, T, W)
        hidden = self.blocks(hidden, causal=True)
        ends = ids.argmax(dim=-1)[:, None, None].expand(-1, -1, hidden.shape[-1])
        return self.norm(hidden.gather(1, ends)[:, 0])  # (N, W)


class WholeTextEncoder(nn.Module):
    """Joins the chunk embeddings of a caption; the appended cls token is the whole caption."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.chunks = config.chunks
        hidden = adapter_width(config.width)
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
        return self.norm(self.blocks(hidden, causal=True)[:, -1])


def adapter_width(width: int) -> int:
    """Hidden width of the residual adapter in front of the whole-text blocks."""
    return max(MIN_ADAPTER_WIDTH, width * 2 // 3)


def _causal_blocks(width: int, heads: int, layers: int, activation: str = "gelu") -> Blocks:
    """Blocks with CLIP's initial scales, which shrink with depth."""
    blocks = [Block(width, heads, MLP_RATIO, NORM_EPS, activation) for _ in range(layers)]
    residual_std = width**-0.5 * (2 * layers) ** -0.5
    for block in blocks:
        nn.init.normal_(block.attn.qkv.weight, std=width**-0.5)
        nn.init.zeros_(block.attn.qkv.bias)
        nn.init.normal_(block.attn.proj.weight, std=residual_std)
        nn.init.zeros_(block.attn.proj.bias)
        nn.init.normal_(block.expand.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(block.contract.weight, std=residual_std)
    return Blocks(blocks)
