"""The losses of CAFT and its controls, on logical blocks of the global batch (model section 3).
Called with one worker's images and the texts of every worker; no communication in here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from caft.dropout import NEGATIVES, NUMBERS, Draws, random_numbers

if TYPE_CHECKING:
    from caft.attention_pool import AttentionPool
    from caft.config import LossWeights
    from caft.model import CAFT, ImageFeatures, TextFeatures


class CAFTLoss(NamedTuple):
    """The terms of a loss and their total, scalars all of them.

    `part_text_conditioned`, `part_multi_positive` and `whole` are attributes too, and zero where
    the configuration leaves them out.
    """

    terms: dict[str, Tensor]  # that the configuration trains, by name, not weighted
    total: Tensor  # the sum of weighted terms: what training differentiates

    @property
    def part_text_conditioned(self) -> Tensor:
        return self._term("part_text_conditioned")

    @property
    def part_multi_positive(self) -> Tensor:
        return self._term("part_multi_positive")

    @property
    def whole(self) -> Tensor:
        return self._term("whole")

    def _term(self, name: str) -> Tensor:
        return self.terms.get(name, torch.zeros_like(self.total))


def weighted_loss(terms: dict[str, Tensor], weights: LossWeights) -> CAFTLoss:
    """Terms by name with their weighted sum; `weights` has a field of each name."""
    weighted = [getattr(weights, name) * term for name, term in terms.items()]
    return CAFTLoss(terms, sum(weighted[1:], start=weighted[0]))


def caft_loss(
    image_features: ImageFeatures,
    text_features: TextFeatures,
    model: CAFT,
    negatives: Tensor | None = None,
    block_size: int = 256,
    first_image: int = 0,
    seed: int = 0,
    all_whole_images: Tensor | None = None,
    part_steps: PartSteps | None = None,
) -> CAFTLoss:
    """The loss of a global batch of N captions on the images [first_image, first_image + B).

    Block a of `block_size` images meets every block b of captions; positives are where a = b.
    Each term is divided by the column count of its block, summed over b and averaged over a.
    Summed over workers that share the images, it does not depend on how many workers there are.
    The model's configuration says which terms there are and what they weigh. Another term is added
    here, to `terms`, and its weight to `LossWeights`: whatever logs or totals losses reads their
    names from the result. The softmax alone knows no blocks: like CLIP's, it compares every image
    with every caption of the batch.

    Memory grows with B x block_size: what a pair of blocks pools is dropped once its loss is
    known, and made again in backward.

    Args:
        image_features: this worker's B images.
        text_features: all N captions, K sub-captions each.
        negatives: (N, N-1); entry [i, n] says which sub-caption of the n-th other caption
            (ascending, i left out) is image i's negative. Only captions of image i's own block
            are asked for, so (N, block_size-1) does as well. None: drawn from `seed`.
        block_size: images per logical block; a smaller batch is one block.
        all_whole_images: (N, D) whole embeddings of every worker's images, which the softmax
            alone needs; None: this worker has all images.
        part_steps: compiled forms of `PLAIN_STEPS`; None: those.

    Raises:
        ValueError: N is not a multiple of the block size, `negatives` has another shape, or images
            that the softmax needs are not there.
    """
    losses = model.config.losses
    count, parts = text_features.parts.shape[:2]
    block = min(block_size, count)
    if count % block:
        raise ValueError(f"a batch of {count} is not a multiple of block_size {block}")
    device = text_features.parts.device
    image = torch.arange(first_image, first_image + len(image_features.whole), device=device)
    terms = {}
    if losses.parts:
        if negatives is None:
            negatives = draw_negatives(count, parts, seed, block)
        negatives = own_block(negatives, count, block).to(device)
        both = _part_losses(
            image_features,
            text_features.parts,
            model,
            negatives,
            image,
            block,
            part_steps or PLAIN_STEPS,
        )
        terms["part_text_conditioned"], terms["part_multi_positive"] = both.unbind()
    if losses.whole == "sigmoid":
        terms["whole"] = _whole_loss(image_features.whole, text_features.whole, model, image)
    elif losses.whole == "softmax":
        others = image_features.whole if all_whole_images is None else all_whole_images
        terms["whole"] = _softmax_loss(
            image_features.whole, others, text_features.whole, model, image
        )
    return weighted_loss(terms, losses.weights)


def draw_negatives(count: int, parts: int, seed: int | Tensor, block: int) -> Tensor:
    """Seeded `negatives` (N, block-1) for `caft_loss`, the same on every worker and device.

    Args:
        seed: a number, or a scalar int64 on the device that is to draw them.
    """
    if not isinstance(seed, Tensor):
        seed = torch.full((), seed, dtype=torch.int64)
    images = torch.arange(count, device=seed.device)
    numbers = random_numbers(Draws(seed, images).stream(NEGATIVES), 1, block - 1)[:, 0].long()
    return (numbers + NUMBERS // 2) * parts // NUMBERS


def own_block(negatives: Tensor, count: int, block: int) -> Tensor:
    """The (N, block-1) entries of `negatives` that speak of captions in the row's own block."""
    if negatives.shape == (count, block - 1):
        return negatives
    if negatives.shape != (count, count - 1):
        raise ValueError(
            f"negatives: {tuple(negatives.shape)} given, ({count}, {count - 1}) or "
            f"({count}, {block - 1}) is due"
        )
    # Of n-th others, those before a row's block keep their number: the block's begin at its start.
    starts = torch.arange(count, device=negatives.device) // block * block
    columns = starts[:, None] + torch.arange(block - 1, device=negatives.device)
    return negatives.gather(1, columns)


def select_sub_captions(
    reader: Tensor, start: int, block: int, parts: int, negatives: Tensor
) -> Tensor:
    """The sub-captions each reading caption picks of a block: its own K, then one of every other.

    Args:
        reader: (B,) caption indices inside the block that begins at `start`.
        negatives: (N, block-1), see `own_block`.

    Returns:
        (B, K + block - 1) indices into the flattened (N*K) sub-captions.
    """
    own = reader[:, None] * parts + torch.arange(parts, device=reader.device)
    other = torch.arange(start, start + block - 1, device=reader.device)
    other = other + (other >= reader[:, None])  # (B, block-1): ascending, the reader left out
    return torch.cat([own, other * parts + negatives[reader]], dim=1)


class PartSteps(NamedTuple):
    """What the part losses compute, in two functions that may be compiled: `project` once, and
    `pair` for each pair of blocks, so that a graph does not grow with the number of workers.

    What the first `kept` pairs pool is kept for backward; the others compute it again.
    """

    project: Callable[..., Any]
    pair: Callable[..., Any]
    kept: int = 0


def project_parts(
    pool: AttentionPool, sub_captions: Tensor, fine: Tensor, fine_cls: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Queries (N*K, D) and unit targets (N*K, D) of sub-captions; keys and values of images
    (B, heads, M + 1, d) and their unit cls (B, D)."""
    targets = F.normalize(sub_captions.float(), dim=-1)
    return (
        pool.queries(sub_captions),
        targets,
        *pool.keys_values(fine),
        F.normalize(fine_cls.float(), dim=-1),
    )


def pair_of_blocks(
    pool: AttentionPool,
    scale: Tensor,
    bias: Tensor,
    of_texts: tuple[Tensor, Tensor, Tensor],
    of_images: tuple[Tensor, Tensor, Tensor],
    row: Tensor,
    own: Tensor,
) -> Tensor:
    """Text-conditioned and multi-positive loss (2,) of b images on one block of texts.

    Args:
        of_texts: queries and targets (block*K, D) and negatives (block, block-1) of the block.
        of_images: keys, values and unit cls of the images.
        row: (b,) places of the images in their own block.
        own: (b,) whether that is the block of the texts.
    """
    (queries, targets, negatives), (keys, values, fine_cls) = of_texts, of_images
    block = len(negatives)
    parts = len(queries) // block
    # Row r of every image block meets the selection that row r of this block of texts made.
    selected = select_sub_captions(row, 0, block, parts, negatives)  # (b, block+K-1)
    pooled = F.normalize(pool(queries[selected], keys, values).float(), dim=-1)
    cosine = (pooled * targets[selected]).sum(dim=-1)
    positive = (selected // parts == row[:, None]) & own[:, None]
    conditioned = _sigmoid_loss(scale * cosine + bias, positive)

    columns = torch.arange(block * parts, device=row.device)
    cosine = _cosine(fine_cls, targets)  # (b, block*K)
    positive = (columns // parts == row[:, None]) & own[:, None]
    return torch.stack([conditioned, _sigmoid_loss(scale * cosine + bias, positive)])


PLAIN_STEPS = PartSteps(project_parts, pair_of_blocks)


def _part_losses(
    images: ImageFeatures,
    texts: Tensor,
    model: CAFT,
    negatives: Tensor,
    image: Tensor,
    block: int,
    steps: PartSteps,
) -> Tensor:
    """Text-conditioned and multi-positive loss (2,) of B images, the `image`-th (B,) of the batch,
    on all sub-captions (N, K, D)."""
    pool, scale, bias = model.attention_pool, model.part_log_scale.exp(), model.part_bias
    queries, targets, *of_images = steps.project(
        pool, texts.flatten(0, 1), images.fine, images.fine_cls
    )
    blocks = len(texts) // block
    of_texts = [tensor.chunk(blocks) for tensor in (queries, targets, negatives)]
    shares = [tensor.split(block) for tensor in (*of_images, image % block, image // block)]
    losses: list[Tensor] = []
    for number in range(blocks):
        block_of_texts = tuple(tensors[number] for tensors in of_texts)
        for n, row in enumerate(shares[3]):
            block_of_images = tuple(tensors[n] for tensors in shares[:3])
            own = shares[4][n] == number
            given = (pool, scale, bias, block_of_texts, block_of_images, row, own)
            if len(losses) < steps.kept:
                losses.append(steps.pair(*given))
                continue
            losses.append(  # nothing is drawn in there
                checkpoint(steps.pair, *given, use_reentrant=False, preserve_rng_state=False)
            )
    return torch.stack(losses).sum(dim=0) / blocks


def _whole_loss(images: Tensor, texts: Tensor, model: CAFT, image: Tensor) -> Tensor:
    """Whole loss of B images (B, D), the `image`-th (B,) of the batch, on all captions (N, D).

    Every block has as many columns, so one sum over all captions is the sum over blocks.
    """
    cosine = _cosine(F.normalize(images.float(), dim=-1), F.normalize(texts.float(), dim=-1))
    own = torch.arange(len(texts), device=image.device) == image[:, None]  # (B, N)
    return _sigmoid_loss(model.whole_log_scale.exp() * cosine + model.whole_bias, own)


def _softmax_loss(
    images: Tensor, all_images: Tensor, texts: Tensor, model: CAFT, image: Tensor
) -> Tensor:
    """This worker's share of CLIP's symmetric cross-entropy over N images and captions: image to
    text of its own B images, the `image`-th (B,), and text to image of their captions."""
    if len(all_images) != len(texts):
        raise ValueError(
            f"softmax over {len(texts)} captions needs as many images, got {len(all_images)}; "
            "pass all_whole_images"
        )
    images, all_images, texts = (
        F.normalize(t.float(), dim=-1) for t in (images, all_images, texts)
    )
    scale = model.whole_log_scale.exp()
    to_text, to_image = scale * _cosine(images, texts), scale * _cosine(texts[image], all_images)
    entropies = [F.cross_entropy(logits, image, reduction="sum") for logits in (to_text, to_image)]
    return torch.stack(entropies).sum() / (2 * len(texts))


def _cosine(images: Tensor, texts: Tensor) -> Tensor:
    """(B, C) products of unit vectors in float32: a scale of up to 100 follows, for which the
    eight bits of a bfloat16 are too few."""
    with torch.autocast(images.device.type, enabled=False):
        return images @ texts.T


def _sigmoid_loss(logits: Tensor, positive: Tensor) -> Tensor:
    """Sum of -log sigmoid(+-logit) over all pairs, divided by the number of columns."""
    signed = torch.where(positive, logits, -logits)
    return -F.logsigmoid(signed).sum() / logits.shape[1]
