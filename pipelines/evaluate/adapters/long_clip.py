"""Long-CLIP and what keeps its keys behind the adapter interface: OpenAI's CLIP with 248 positions.
A text is read whole, as it was written; the first 20 positions and the rest have a table each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import isqrt
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from caft.captions import JOINER
from caft.checkpoint import sha256_of
from caft.errors import CheckpointError
from caft.preprocessing import eval_image
from caft.tokenizer import load_tokenizer
from caft.transforms import normalise
from pipelines.evaluate.adapters.base import Adapter, PixelPreprocess

KEPT_POSITIONS = 20  # read from `positional_embedding`; later ones from `positional_embedding_res`
HEAD_WIDTH = 64  # leaves no trace in a shape
TABLES = ("positional_embedding", "positional_embedding_res")


def is_long_clip(weights: Mapping[str, Tensor]) -> bool:
    return {"visual.conv1.weight", "text_projection", *TABLES} <= weights.keys()


class LongCLIPAdapter(Adapter):
    """A file of weights with Long-CLIP's keys (Long-CLIP; SmartCLIP, DeBias-CLIP and beta-CLIP
    where they have the same), scored by the cosine of the whole text and the central square.

    Raises:
        CheckpointError: a key is missing, surplus or of another shape; all of them are named.
    """

    sentences = None

    def __init__(self, file: Path, weights: Mapping[str, Tensor]) -> None:
        try:
            self.model = LongCLIP(weights).eval()
        except CheckpointError as error:
            raise CheckpointError(f"{file}: {error}") from None
        self.name, self.fingerprint = file.stem, sha256_of(file)
        self._tokenizer = load_tokenizer("clip")

    def to(self, device: torch.device) -> None:
        self.model.to(device)

    def preprocess(self) -> PixelPreprocess:
        return PixelPreprocess(partial(_central_square, self.model.image_size_px))

    def encode_images(self, columns: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        pixels = torch.from_numpy(columns["images"]).to(self.model.text_projection.device)
        return {"whole": self.model.encode_image(normalise(pixels))}

    def encode_texts(self, captions: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        texts = [JOINER.join(sentences) for sentences in captions]
        tokens = self._tokenizer(texts, len(self.model.positional_embedding))
        return {"whole": self.model.encode_text(tokens.to(self.model.text_projection.device))}


def _central_square(size_px: int, picture: np.ndarray) -> np.ndarray:
    """uint8 (3, S, S) of a picture (H, W, 3), as CLIP's models are evaluated."""
    return eval_image(picture, size_px, "crop").numpy()


class LongCLIP(nn.Module):
    """Both encoders, with parameters under the published names."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        width, _, patch_px, _ = weights["visual.conv1.weight"].shape
        table, (text_width, embed_dim) = weights[TABLES[1]], weights["text_projection"].shape
        patches = len(weights.get("visual.positional_embedding", (None,))) - 1
        self.image_size_px = isqrt(patches) * patch_px
        self.visual = _Vision(width, patch_px, patches, embed_dim, _layers(weights, "visual."))
        self.transformer = _Transformer(text_width, _layers(weights, ""))
        self.token_embedding = nn.Embedding(
            len(weights.get("token_embedding.weight", ())) or 1, text_width
        )
        self.positional_embedding = nn.Parameter(torch.empty(len(table), text_width))
        self.positional_embedding_res = nn.Parameter(torch.empty(len(table), text_width))
        self.ln_final = nn.LayerNorm(text_width)
        self.text_projection = nn.Parameter(torch.empty(text_width, embed_dim))
        self.logit_scale = nn.Parameter(torch.empty(()))
        self._load(weights)

    def encode_image(self, images: Tensor) -> Tensor:
        """Embeddings (B, D) of normalised images (B, 3, S, S)."""
        return self.visual(images)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Embeddings (B, D) of ids (B, T), read at the end token, which is the largest id."""
        kept, later = self.positional_embedding, self.positional_embedding_res
        positions = torch.cat([kept[:KEPT_POSITIONS], later[KEPT_POSITIONS:]])
        length = tokens.shape[1]
        hidden = self.token_embedding(tokens) + positions[:length]  # (B, T, W)
        causal = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)
        hidden = self.transformer(hidden, causal)
        ends = hidden[torch.arange(len(tokens)), tokens.argmax(dim=1)]
        return self.ln_final(ends) @ self.text_projection

    def _load(self, weights: Mapping[str, Tensor]) -> None:
        ours = self.state_dict()
        problems = [f"missing '{key}'" for key in ours if key not in weights]
        problems += [f"surplus '{key}'" for key in weights if key not in ours]
        problems += [
            f"'{key}' is {tuple(weights[key].shape)}, not {tuple(value.shape)}"
            for key, value in ours.items()
            if key in weights and weights[key].numel() != value.numel()
        ]
        if problems:
            raise CheckpointError(f"Long-CLIP's weights do not fit: {'; '.join(problems)}")
        self.load_state_dict({k: weights[k].float().view_as(v) for k, v in ours.items()})


class _Vision(nn.Module):
    def __init__(self, width: int, patch_px: int, patches: int, embed_dim: int, layers: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch_px, stride=patch_px, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(patches + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = _Transformer(width, layers)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, embed_dim))

    def forward(self, images: Tensor) -> Tensor:
        patches = self.conv1(images).flatten(2).transpose(1, 2)  # (B, N, W)
        cls = self.class_embedding.expand(len(images), 1, -1)
        tokens = torch.cat([cls, patches], dim=1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(tokens))[:, 0]) @ self.proj


class _Transformer(nn.Module):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(_Block(width) for _ in range(layers))

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            tokens = block(tokens, mask)
        return tokens


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, max(1, width // HEAD_WIDTH), batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)}
        )

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """`mask` is true where a token may not attend."""
        seen = self.ln_1(tokens)
        tokens = tokens + self.attn(seen, seen, seen, need_weights=False, attn_mask=mask)[0]
        hidden = self.mlp["c_fc"](self.ln_2(tokens))
        return tokens + self.mlp["c_proj"](hidden * torch.sigmoid(1.702 * hidden))  # CLIP's GELU


def _layers(weights: Mapping[str, Tensor], prefix: str) -> int:
    start = f"{prefix}transformer.resblocks."
    return len({key.removeprefix(start).split(".")[0] for key in weights if key.startswith(start)})
