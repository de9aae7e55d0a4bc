"""Scores of a few images with all captions, exactly and in bounded memory.
Between features and metrics; the evaluate stage calls it tile by tile, on one machine or many."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caft.attention_pool import AttentionPool
from caft.config import ModelConfig
from caft.model import CAFT

Features = Mapping[str, Tensor]  # of images or of captions by name; the first dimension counts them

IMAGE_TILE = 64
# Texts of a tile: what stands between a tile's matrix products should stay in a CPU's cache, and
# fill a GPU.
TEXT_TILE = {"cpu": 128, "cuda": 4096}


class Scorer(Protocol):
    """Scores tiles of image-text pairs. It is sent to other processes, and holds no encoder."""

    @property
    def components(self) -> tuple[str, ...]:
        """Of a score: "whole" and "part", or one of them."""
        ...

    def to(self, device: torch.device | str) -> Scorer: ...

    def prepare_images(self, images: Features) -> Features:
        """What depends on images alone, computed once."""
        ...

    def prepare_texts(self, texts: Features) -> Features:
        """What depends on captions alone, computed once; the first dimension still counts them."""
        ...

    def tile(
        self, images: Features, texts: Features, components: Sequence[str]
    ) -> dict[str, Tensor]:
        """The asked components, each (I, T), of I prepared images with T prepared captions."""
        ...


def kind_names(components: Sequence[str]) -> tuple[str, ...]:
    """The kinds of score that a scorer's components give; the last is the model's own."""
    return ("whole", "blended") if len(components) > 1 else tuple(components)


def score_names(model: ModelConfig) -> tuple[str, ...]:
    """The kinds of score a CAFT model has; the last is its own, that of `CAFT.score`."""
    components = [("whole", model.losses.has_whole), ("part", model.losses.parts)]
    return kind_names([name for name, there in components if there])


class CAFTScorer:
    """The whole and part logits of a CAFT model or of one of its controls (model section 6)."""

    def __init__(self, model: CAFT) -> None:
        losses = model.config.losses
        self._chunks = model.config.text.chunks
        self._whole: Logit | None = None
        self._part: PartScorer | None = None
        if losses.has_whole:
            bias = model.whole_bias.item() if losses.whole == "sigmoid" else 0.0
            self._whole = Logit(model.whole_log_scale.exp().item(), bias)
        if losses.parts:
            logit = Logit(model.part_log_scale.exp().item(), model.part_bias.item())
            self._part = PartScorer(model.attention_pool, logit)
        there = {"whole": losses.has_whole, "part": losses.parts}
        self.components = tuple(name for name in there if there[name])

    def to(self, device: torch.device | str) -> CAFTScorer:
        if self._part is not None:
            self._part.to(device)
        return self

    def prepare_images(self, images: Features) -> Features:
        prepared: dict[str, Tensor] = {}
        if self._whole is not None:
            prepared["whole"] = images["whole"]
        if self._part is not None:
            prepared |= self._part.prepare_images(images["fine"].float())
        return prepared

    def prepare_texts(self, texts: Features) -> Features:
        prepared: dict[str, Tensor] = {}
        if self._whole is not None:
            prepared["whole"] = texts["whole"]
        if self._part is not None:
            prepared |= self._part.prepare_texts(texts["parts"][:, : self._chunks].float())
        return prepared

    def tile(
        self, images: Features, texts: Features, components: Sequence[str]
    ) -> dict[str, Tensor]:
        logits = {}
        if self._whole is not None and "whole" in components:
            logits["whole"] = self._whole(cosine_scores(images, texts))
        if self._part is not None and "part" in components:
            logits["part"] = self._part(images, texts)
        return logits


@dataclass(frozen=True)
class Logit:
    """A cosine to a logit."""

    scale: float
    bias: float

    def __call__(self, cosine: Tensor) -> Tensor:
        return cosine * self.scale + self.bias


@dataclass(frozen=True)
class FunctionScorer:
    """A function of image and text features as a Scorer: `score` gives (I, T), and a process that
    gets it must be able to import it."""

    score: Callable[[Features, Features], Tensor]
    components: tuple[str, ...] = ("whole",)

    def to(self, device: torch.device | str) -> FunctionScorer:
        return self

    def prepare_images(self, images: Features) -> Features:
        return images

    def prepare_texts(self, texts: Features) -> Features:
        return texts

    def tile(
        self, images: Features, texts: Features, components: Sequence[str]
    ) -> dict[str, Tensor]:
        return {self.components[0]: self.score(images, texts)}


def cosine_scores(images: Features, texts: Features) -> Tensor:
    """Cosines (I, T) of `whole` embeddings: the score of a model that has no other."""
    whole = F.normalize(images["whole"].float(), dim=-1)
    # A product's last bits depend on its shape; equal images have to score the same in every tile.
    padded = F.pad(whole, (0, 0, 0, -len(whole) % IMAGE_TILE))
    return (padded @ F.normalize(texts["whole"].float(), dim=-1).T)[: len(whole)]


class PartScorer(nn.Module):
    """Mean part logits without the output projection, which is most of the plain form's work.

    The pooled vector is o = W x + b, where x holds what each of H heads mixed from the values. The
    cosine with a sub-caption t needs <o, t> = <x, W't> + <b, t>, in which W't depends on t alone,
    and |o|^2 = x'W'W x + 2 <W'b, x> + |b|^2. Each head's d columns of W are a product of
    orthonormal columns U and a d x d matrix; the matrix goes into the values, which are projected
    once per image. What is left, U'U, is the identity within a head, and between two heads it is
    made diagonal by turning both (their principal angles). So with D = H d, of the D x D products
    for |o| there remain D^2 (1 - 2/H) / 2, and none for <o, t>. For CAFT-B that is 0.33 MFLOP per
    image and sub-caption, attention included; projecting query and output for each takes 1.18.
    """

    basis: Tensor
    inner: Tensor
    bias: Tensor
    linear: Tensor
    pair_cosines: Tensor | None

    def __init__(self, pool: AttentionPool, logit: Logit) -> None:
        super().__init__()
        self.pool = copy.deepcopy(pool).requires_grad_(False)
        self.logit = logit
        heads = pool.heads
        weight, bias = (p.detach().double() for p in pool.proj.parameters())
        width = len(weight)
        size = width // heads
        columns = weight.view(width, heads, size).transpose(0, 1)  # (H, D, d)
        basis, inner = torch.linalg.qr(columns)  # (H, D, d), (H, d, d)
        paired = heads % 2 == 0
        cosines = []  # of the principal angles between the two heads of a pair
        for first in range(0, heads if paired else 0, 2):
            left, angle, right = torch.linalg.svd(basis[first].T @ basis[first + 1])
            for head, turn in ((first, left), (first + 1, right.T)):
                basis[head] = basis[head] @ turn
                inner[head] = turn.T @ inner[head]
            cosines.append(angle)
        flat = basis.transpose(0, 1).flatten(1)  # U: (D, D)
        gram = flat.T @ flat
        group = 2 * size if paired else size
        self._group = group
        self._constant = float(bias @ bias)
        self._coupled = 0
        for start in range(group, width, group):  # each group of columns with all before it
            coupling = (2 * gram[:start, start : start + group]).float().contiguous()
            self.register_buffer(f"coupling{self._coupled}", coupling)  # (start, group)
            self._coupled += 1
        self.register_buffer("basis", flat.float())
        self.register_buffer("inner", inner.float())
        self.register_buffer("bias", bias.float())
        self.register_buffer("linear", (2 * flat.T @ bias).float())  # (D,)
        pairs = torch.stack(cosines).float() if cosines else None  # (H/2, d)
        self.register_buffer("pair_cosines", pairs)

    def flop_per_query(self, segments: int) -> int:
        """Multiplications and additions in matrix products, per image and sub-caption."""
        width, group = len(self.bias), self._group
        starts = range(group, width, group)
        return 4 * segments * width + sum(2 * start * group for start in starts)

    @torch.no_grad()
    def prepare_texts(self, parts: Tensor) -> dict[str, Tensor]:
        """Of sub-captions (T, C, D): `queries` (T, C, H, d), `directions` (T, C, D) and `offsets`
        (T, C), which are U't and <b, t> for normalised t."""
        queries = self.pool.scoring_queries(parts).unflatten(-1, (self.pool.heads, -1))
        target = F.normalize(parts, dim=-1)
        return {
            "queries": queries * queries.shape[-1] ** -0.5,
            "directions": target @ self.basis,
            "offsets": target @ self.bias,
        }

    @torch.no_grad()
    def prepare_images(self, fine: Tensor) -> dict[str, Tensor]:
        """Of fine segments (I, M, D): `keys` (I, H, d, M) and `values` (I, H, M, d) without the
        zero slot."""
        keys = self._heads(self.pool.to_k(self.pool.norm_k(fine))).transpose(-1, -2)
        values = self._heads(self.pool.to_v(self.pool.norm_v(fine)))
        return {"keys": keys.contiguous(), "values": values @ self.inner.transpose(-1, -2)}

    @torch.no_grad()
    def forward(self, images: Features, texts: Features) -> Tensor:
        """Mean part logits (I, T) of prepared images and texts."""
        count, chunks = texts["offsets"].shape
        queries = texts["queries"].flatten(0, 1).transpose(0, 1).contiguous()  # (H, Q, d)
        directions, offsets = texts["directions"].flatten(0, 1), texts["offsets"].flatten()
        cosine = queries.new_empty(len(images["keys"]), count * chunks)
        for n, (keys, values) in enumerate(zip(images["keys"], images["values"], strict=True)):
            mixed = self._mix(queries, keys, values)  # (Q, D)
            inner = torch.mul(mixed, directions).sum(dim=-1).add_(offsets)
            # Zero is possible only where the projection has no bias, of a query that attends to
            # nothing: its cosine is 0 then, as F.normalize makes it.
            square = self._square_norm(mixed).clamp_(min=torch.finfo(torch.float32).tiny)
            cosine[n] = inner.mul_(square.rsqrt_())
        return self.logit(cosine.view(len(cosine), count, chunks).mean(dim=-1))

    def _heads(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.pool.heads, -1)).transpose(1, 2)

    def _mix(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention of one image's segments and the zero slot, of logit 0 and value 0: (Q, D)."""
        weights = torch.bmm(queries, keys)  # (H, Q, M)
        most = weights.amax(dim=-1, keepdim=True).clamp_(min=0)
        weights.sub_(most).exp_()
        total = weights.sum(dim=-1, keepdim=True).add_(most.neg_().exp_())
        mixed = torch.bmm(weights, values).div_(total)  # (H, Q, d)
        return mixed.transpose(0, 1).flatten(1)

    def _square_norm(self, mixed: Tensor) -> Tensor:
        """|o|^2 (Q,) of what the heads mixed (Q, D)."""
        form = mixed + self.linear
        for n in range(self._coupled):
            start = (n + 1) * self._group
            columns = form[:, start : start + self._group]
            torch.addmm(columns, mixed[:, :start], self.get_buffer(f"coupling{n}"), out=columns)
        if self.pair_cosines is not None:
            pairs = (-1, len(self.pair_cosines), 2, self.pair_cosines.shape[1])
            first = mixed.view(pairs)[:, :, 0]
            form.view(pairs)[:, :, 1].addcmul_(first, self.pair_cosines, value=2)
        return form.mul_(mixed).sum(dim=-1).add_(self._constant)
