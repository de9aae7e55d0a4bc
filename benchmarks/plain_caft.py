"""CAFT written a second time, plainly: functions over the released state-dict keys, no modules.
The oracle that tests hold `caft` against, and the unhurried side of speed comparisons.

It computes what the reference computes, also where that costs time: sub-captions run at full
length, farthest points are found step by step in float64 over all channels, dead superpixels stay
as duplicates, and a query is projected once for every image it meets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CELL_PX = 16  # one superpixel per cell
STEM_STRIDES = (2, 2, 2, 1)
STEM_STRIDE = math.prod(STEM_STRIDES)
SEGMENT_ATTENTION_HEADS = 12  # of a graph pool's self-attention
TEXT_POOLING_HEADS = 8
POOL_DROPOUT = 0.1
POOL_NORM_EPS = TEXT_NORM_EPS = BATCH_NORM_EPS = 1e-5
BATCH_NORM_MOMENTUM = 0.1
COSINE_SCALE = 5.0
FINE_LEVEL = 1  # the group whose output is the fine one
NOT_TRAINED = ("running_mean", "running_var", "num_batches_tracked", "pos_embed", "pe_token")

Features = dict[str, Tensor]


class PlainCAFT:
    """A released state dict with the functions that read it.

    `parameters` holds the trained tensors as leaves that require a gradient, `buffers` the rest,
    both under the released keys. `config` has the released field names.
    """

    def __init__(self, state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
        self.config = config
        self.parameters: dict[str, Tensor] = {}
        self.buffers: dict[str, Tensor] = {}
        for key, value in state_dict.items():
            if key.endswith(NOT_TRAINED):
                self.buffers[key] = value.detach().clone()
            else:
                self.parameters[key] = value.detach().clone().requires_grad_()

    def encode_image(self, images: Tensor, superpixels: Tensor, training: bool = False) -> Features:
        """Normalised images (B, 3, H, W) with label maps (B, H, W), every step by its name.

        In `training`, batch normalisation uses the batch's statistics and dropout is on.
        """
        vision = self.config["vision_cfg"]
        stem = self._stem(images, training)  # (B, h, w, D)
        cells = stem + self._positions(stem.shape[1], stem.shape[2])
        count = math.prod(side // CELL_PX for side in superpixels.shape[1:])
        found = segment_means(cells, superpixels, count)
        tokens, cls = found["segment_tokens"], self._weight("visual.cls_token")
        cls = cls.expand(len(images), -1, -1)  # (B, 1, D)
        out = {"stem": stem, **found}
        place = 0
        for level, depth in enumerate(vision["depth"]):
            joined = torch.cat([cls, tokens], dim=1)  # (B, 1 + N, D)
            for _ in range(depth):
                joined = self._vision_block(joined, f"visual.blocks.{place}")
                place += 1
            out[f"block{level + 1}"] = joined
            cls, tokens = joined[:, :1], joined[:, 1:]
            if level < len(vision["num_clusters"]):
                live = ~found["dead"] if level == 0 else None
                pooled = self._graph_pool(cls, tokens, level, live, training)
                cls, tokens = pooled["cls"], pooled["pooled"]
                out |= {f"{name}{level + 1}": value for name, value in pooled.items()}
        eps = vision["norm_layer_eps"]
        out["fine_tokens"] = self._norm(out[f"block{FINE_LEVEL + 1}"], "visual.norm_fine", eps)
        out["coarse_tokens"] = self._norm(joined, "visual.norm", eps)
        fine = out["fine_tokens"] @ self._weight("image_post.proj")  # (B, 1 + M1, E)
        coarse = out["coarse_tokens"] @ self._weight("image_post_coarse.proj")
        out |= {"fine": fine[:, 1:], "fine_cls": fine[:, 0]}
        return out | {"coarse": coarse[:, 1:], "whole_image": coarse[:, 0]}

    def encode_text(self, tokens: Tensor) -> Features:
        """Token ids (B, K, T): `part_text` (B, K, E) and `whole_text` (B, E)."""
        batch, parts, length = tokens.shape
        text, whole = self.config["text_cfg"], self.config["text_coarse_cfg"]
        ids = tokens.reshape(batch * parts, length)
        hidden = F.embedding(ids, self._weight("token_embedding.weight"))  # (B*K, T, W)
        hidden = hidden + self._weight("positional_embedding")[:length]
        for n in range(text["layers"]):
            hidden = self._text_block(hidden, f"transformer.resblocks.{n}", text["heads"])
        hidden = self._norm(hidden, "ln_final", TEXT_NORM_EPS)
        end = hidden[torch.arange(len(ids), device=ids.device), ids.argmax(dim=-1)]
        end = end.view(batch, parts, -1)  # (B, K, W)

        chunks = end[:, : whole["context_length"]]
        adapter = "paragraph_encoder.adapter."
        change = F.gelu(self._linear(chunks, f"{adapter}mlp.c_fc"))
        change = self._linear(change, f"{adapter}mlp.c_proj")
        chunks = chunks + self._weight(f"{adapter}ls.gamma") * change
        cls = self._weight("paragraph_encoder.cls_embed").expand(batch, -1, -1)
        hidden = torch.cat([chunks, cls], dim=1)  # (B, C + 1, W)
        hidden = hidden + self._weight("paragraph_encoder.positional_embedding")
        for n in range(whole["layers"]):
            prefix = f"paragraph_encoder.transformer.resblocks.{n}"
            hidden = self._text_block(hidden, prefix, whole["heads"])
        last = self._norm(hidden[:, -1], "paragraph_encoder.ln_final", TEXT_NORM_EPS)
        return {
            "part_text": end @ self._weight("text_post.proj"),
            "whole_text": last @ self._weight("text_post_coarse.proj"),
        }

    def losses(self, images: Features, texts: Features, negatives: Tensor) -> Features:
        """The three losses and their `loss_total` on one worker's batch of B.

        `negatives` (B, B-1): entry [i, n] is the sub-caption of the n-th other caption (ascending,
        i left out) that image i gets as a negative.
        """
        batch, parts = texts["part_text"].shape[:2]
        sub_captions = texts["part_text"].flatten(0, 1)  # (B*K, E)
        selection = selected_sub_captions(negatives, parts)  # (B, B+K-1)
        chosen = sub_captions[selection.to(sub_captions.device)]  # (B, B+K-1, E)
        pooled = self._pool_by_text(chosen, images["fine"])  # (B, B+K-1, E)
        cosine = F.cosine_similarity(pooled, chosen, dim=-1)
        part_logits = self._logits(cosine)
        cosine = F.normalize(images["fine_cls"], dim=-1) @ F.normalize(sub_captions, dim=-1).T
        multi_positive_logits = self._logits(cosine)  # (B, B*K)
        whole_logits = self._whole_logits(images, texts)  # (B, B)

        part_labels = -torch.ones(part_logits.shape)
        multi_positive_labels = -torch.ones(multi_positive_logits.shape)
        whole_labels = -torch.ones(whole_logits.shape)
        for i in range(batch):
            part_labels[i, i : i + parts] = 1  # after one of every caption before it
            multi_positive_labels[i, i * parts : (i + 1) * parts] = 1
            whole_labels[i, i] = 1
        out = {
            "loss_part_text_conditioned": sigmoid_loss(part_logits, part_labels),
            "loss_part_multi_positive": sigmoid_loss(multi_positive_logits, multi_positive_labels),
            "loss_whole": sigmoid_loss(whole_logits, whole_labels),
        }
        out["loss_total"] = sum(out.values(), start=torch.zeros_like(out["loss_whole"]))
        logits = {
            "part_logits": part_logits,
            "multi_positive_logits": multi_positive_logits,
            "whole_logits": whole_logits,
        }
        return out | logits | {"selection": selection, "pooled": pooled}

    @torch.no_grad()
    def score(
        self, images: Features, texts: Features, alpha: float = 0.3, top_k: int | None = None
    ) -> Tensor:
        """Blended scores (N_images, N_texts); with `top_k`, -inf but for an image's best texts."""
        whole = self._whole_logits(images, texts)
        part = torch.empty_like(whole)
        chunks = texts["part_text"][:, : self.config["text_coarse_cfg"]["context_length"]]
        for i, fine in enumerate(images["fine"]):
            for j, queries in enumerate(chunks):
                pooled = self._pool_by_text(queries[None], fine[None])[0]  # (C, E)
                part[i, j] = self._logits(F.cosine_similarity(pooled, queries, dim=-1)).mean()
        blended = (1 - alpha) * whole + alpha * part
        if top_k is None:
            return blended
        best = torch.full_like(blended, -torch.inf)
        for i in range(len(whole)):
            kept = whole[i].argsort(descending=True)[:top_k]
            best[i, kept] = blended[i, kept]
        return best

    def _stem(self, images: Tensor, training: bool) -> Tensor:
        """Four convolutions with batch normalisation, then 1x1: (B, h, w, D)."""
        hidden = images
        for n, stride in enumerate(STEM_STRIDES):
            conv, norm = (f"visual.patch_embed.proj.{3 * n + step}" for step in (0, 1))
            hidden = F.conv2d(hidden, self._weight(f"{conv}.weight"), stride=stride, padding=1)
            hidden = F.batch_norm(
                hidden,
                self.buffers[f"{norm}.running_mean"],
                self.buffers[f"{norm}.running_var"],
                self._weight(f"{norm}.weight"),
                self._weight(f"{norm}.bias"),
                training,
                BATCH_NORM_MOMENTUM,
                BATCH_NORM_EPS,
            )
            hidden = F.relu(hidden)
        last = f"visual.patch_embed.proj.{3 * len(STEM_STRIDES)}"
        hidden = F.conv2d(hidden, self._weight(f"{last}.weight"), self._weight(f"{last}.bias"))
        return hidden.permute(0, 2, 3, 1)

    def _positions(self, height: int, width: int) -> Tensor:
        """The stored (square) position grid as (h, w, D), resized where the image asks for it."""
        stored = self.buffers["visual.pos_embed"]
        side = math.isqrt(stored.shape[1])
        grid = stored.view(1, side, side, -1)
        if (height, width) != (side, side):
            grid = F.interpolate(grid.permute(0, 3, 1, 2), size=(height, width), mode="bicubic")
            grid = grid.permute(0, 2, 3, 1)
        return grid[0]

    def _vision_block(self, tokens: Tensor, prefix: str) -> Tensor:
        vision = self.config["vision_cfg"]
        eps = vision["norm_layer_eps"]
        normed = self._norm(tokens, f"{prefix}.norm1", eps)
        tokens = tokens + self._attention(normed, f"{prefix}.attn", vision["num_heads"])
        hidden = self._linear(self._norm(tokens, f"{prefix}.norm2", eps), f"{prefix}.mlp.fc1")
        return tokens + self._linear(F.gelu(hidden), f"{prefix}.mlp.fc2")

    def _text_block(self, tokens: Tensor, prefix: str, heads: int) -> Tensor:
        """A block in which a token sees itself and what stands before it."""
        normed = self._norm(tokens, f"{prefix}.ln_1", TEXT_NORM_EPS)
        q, k, v = self._packed(normed, normed, normed, f"{prefix}.attn")
        later = torch.full((tokens.shape[1],) * 2, -torch.inf, device=tokens.device, dtype=q.dtype)
        mixed = attend(q, k, v, heads, later.triu(1))
        tokens = tokens + self._linear(mixed, f"{prefix}.attn.out_proj")
        normed = self._norm(tokens, f"{prefix}.ln_2", TEXT_NORM_EPS)
        hidden = F.gelu(self._linear(normed, f"{prefix}.mlp.c_fc"))
        return tokens + self._linear(hidden, f"{prefix}.mlp.c_proj")

    def _graph_pool(
        self, cls: Tensor, tokens: Tensor, level: int, live: Tensor | None, training: bool
    ) -> Features:
        """N tokens to M segments (B, M, D); duplicates of dead tokens take part like any other."""
        prefix = f"visual.pools.{level}.pool_block."
        count = self.config["vision_cfg"]["num_clusters"][level]
        seeds = farthest_points(tokens, count, live)  # (B, M)
        rows = torch.arange(len(tokens), device=tokens.device)[:, None]
        eps = self.config["vision_cfg"]["norm_layer_eps"]
        normed = self._norm(tokens, f"{prefix}centroid_fc.norm", eps)
        grouped = tokens + self._attention(
            normed, f"{prefix}centroid_fc.attn", SEGMENT_ATTENTION_HEADS
        )
        grouped = grouped - grouped.mean(dim=1, keepdim=True)
        grouped = F.normalize(grouped + self._weight(f"{prefix}centroid_fc.bias"), dim=-1)
        logits = COSINE_SCALE * grouped @ grouped[rows, seeds].transpose(1, 2)  # (B, N, M)
        share = logits.softmax(dim=-1)
        share = share / share.sum(dim=1, keepdim=True)
        values = share.transpose(1, 2) @ self._expand(tokens, prefix, training)  # (B, M, 4D)
        return {
            "seed_indices": seeds,
            "pool_logits": logits,
            "pooled": self._contract(values, prefix) + tokens[rows, seeds],
            "cls": cls + self._contract(self._expand(cls, prefix, training), prefix),
        }

    def _expand(self, tokens: Tensor, prefix: str, training: bool) -> Tensor:
        hidden = self._linear(self._norm(tokens, f"{prefix}fc1.0", POOL_NORM_EPS), f"{prefix}fc1.1")
        return F.dropout(F.gelu(hidden), POOL_DROPOUT, training)

    def _contract(self, values: Tensor, prefix: str) -> Tensor:
        return self._linear(self._norm(values, f"{prefix}fc2.0", POOL_NORM_EPS), f"{prefix}fc2.1")

    def _pool_by_text(self, queries: Tensor, fine: Tensor) -> Tensor:
        """Each image's own queries (B, Q, E) gather from its fine tokens (B, M, E): (B, Q, E)."""
        q, k, v = self._packed(
            self._norm(queries, "visual_proj.ln_q", TEXT_NORM_EPS),
            self._norm(fine, "visual_proj.ln_k", TEXT_NORM_EPS),
            self._norm(fine, "visual_proj.ln_v", TEXT_NORM_EPS),
            "visual_proj.attn",
        )
        nothing = torch.zeros_like(k[:, :1])  # a slot to attend to nothing
        k, v = torch.cat([k, nothing], dim=1), torch.cat([v, nothing], dim=1)  # (B, M + 1, E)
        return self._linear(attend(q, k, v, TEXT_POOLING_HEADS), "visual_proj.attn.out_proj")

    def _attention(self, tokens: Tensor, prefix: str, heads: int) -> Tensor:
        q, k, v = self._linear(tokens, f"{prefix}.qkv").chunk(3, dim=-1)
        return self._linear(attend(q, k, v, heads), f"{prefix}.proj")

    def _packed(self, q: Tensor, k: Tensor, v: Tensor, prefix: str) -> tuple[Tensor, ...]:
        """Three projections whose weights are packed in one tensor."""
        weights = self._weight(f"{prefix}.in_proj_weight").chunk(3)
        biases = self._weight(f"{prefix}.in_proj_bias").chunk(3)
        return tuple(map(F.linear, (q, k, v), weights, biases))

    def _logits(self, cosine: Tensor) -> Tensor:
        return self._weight("logit_scale").exp() * cosine + self._weight("logit_bias")

    def _whole_logits(self, images: Features, texts: Features) -> Tensor:
        image = F.normalize(images["whole_image"], dim=-1)
        cosine = image @ F.normalize(texts["whole_text"], dim=-1).T
        scale = self._weight("logit_scale_coarse").exp()
        return scale * cosine + self._weight("logit_bias_coarse")

    def _norm(self, tokens: Tensor, prefix: str, eps: float) -> Tensor:
        weight, bias = self._weight(f"{prefix}.weight"), self._weight(f"{prefix}.bias")
        return F.layer_norm(tokens, weight.shape, weight, bias, eps)

    def _linear(self, tokens: Tensor, prefix: str) -> Tensor:
        return F.linear(tokens, self._weight(f"{prefix}.weight"), self._weight(f"{prefix}.bias"))

    def _weight(self, key: str) -> Tensor:
        return self.parameters[key]


def segment_means(cells: Tensor, superpixels: Tensor, count: int) -> Features:
    """Mean cell (B, h, w, D) of each superpixel; a dead one copies the nearest live one's.

    A superpixel without any pixel counts as lying at the origin.
    """
    batch, height, width, dim = cells.shape
    labels = F.interpolate(superpixels[:, None].float(), size=(height, width), mode="nearest")
    labels = labels.view(batch, -1).long()  # (B, h*w)
    size = label_sums(torch.ones_like(labels[..., None]), labels, count)  # (B, S, 1)
    means = label_sums(cells.view(batch, -1, dim), labels, count) / size.clamp(min=1)
    dead = size[..., 0] == 0

    pixels = torch.ones(superpixels.shape[1:], device=cells.device).nonzero()  # (H*W, 2)
    pixels = pixels.expand(batch, -1, -1).double()
    labels = superpixels.reshape(batch, -1).long()
    size = label_sums(torch.ones_like(pixels[..., :1]), labels, count)
    centre = label_sums(pixels, labels, count) / size.clamp(min=1)  # (B, S, 2)
    distance = torch.cdist(centre, centre)  # (B, S, S)
    nearest = distance.masked_fill(dead[:, None, :], torch.inf).argmin(dim=-1)
    nearest = torch.where(dead, nearest, torch.arange(count, device=cells.device))
    rows = torch.arange(batch, device=cells.device)[:, None]
    return {
        "segment_tokens_raw": means,
        "dead": dead,
        "nearest_live": nearest,
        "segment_tokens": means[rows, nearest],
    }


def label_sums(values: Tensor, labels: Tensor, count: int) -> Tensor:
    """Sum over equal labels (B, N) of values (B, N, D): (B, count, D)."""
    sums = values.new_zeros(len(values), count, values.shape[-1])
    return sums.scatter_add(1, labels[..., None].expand_as(values), values)


@torch.no_grad()
def farthest_points(tokens: Tensor, count: int, live: Tensor | None = None) -> Tensor:
    """Indices (B, count): farthest-point sampling that starts at the mean of the live tokens."""
    points = tokens.double()
    weight = torch.ones_like(points[..., :1]) if live is None else live[..., None].double()
    start = (points * weight).sum(dim=1) / weight.sum(dim=1)  # (B, D)
    rows = torch.arange(len(points), device=points.device)
    nearest = (points - start[:, None]).square().sum(dim=-1)  # (B, N)
    chosen = []
    for _ in range(count):
        chosen.append(nearest.argmax(dim=-1))
        step = (points - points[rows, chosen[-1]][:, None]).square().sum(dim=-1)
        nearest = torch.minimum(nearest, step)
    return torch.stack(chosen, dim=1)


def selected_sub_captions(negatives: Tensor, parts: int) -> Tensor:
    """Per image, caption by caption, its own sub-captions and one of every other: (B, B+K-1)."""
    rows = []
    for i, drawn in enumerate(negatives.tolist()):
        row = [j * parts + k for j, k in enumerate(drawn[:i])]
        row += [i * parts + k for k in range(parts)]
        row += [j * parts + k for j, k in enumerate(drawn[i:], start=i + 1)]
        rows.append(row)
    return torch.tensor(rows)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention of q (B, Q, D) over k and v (B, N, D): (B, Q, D)."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def sigmoid_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of -log sigmoid(label x logit), labels 1 or -1, divided by the number of columns."""
    return -F.logsigmoid(labels.to(logits.device) * logits).sum() / logits.shape[1]
