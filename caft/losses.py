"""The losses of CAFT and its controls, on logical blocks of the global batch (model section 3).
Called with one worker's images and the texts of every worker; no communication in here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from caft.attention_pool import AttentionPool
    from caft.model import CAFT, ImageFeatures, TextFeatures


@dataclass
class CAFTLoss:
    """Scalars; `total` is their plain sum. A loss that the configuration leaves out is zero."""

    part_text_conditioned: Tensor
    part_multi_positive: Tensor
    whole: Tensor

    @property
    def total(self) -> Tensor:
        return self.part_text_conditioned + self.part_multi_positive + self.whole


def caft_loss(
    image_features: ImageFeatures,
    text_features: TextFeatures,
    model: CAFT,
    negatives: Tensor | None = None,
    block_size: int = 256,
    first_image: int = 0,
    seed: int = 0,
    all_whole_images: Tensor | None = None,
) -> CAFTLoss:
    """The loss of a global batch of N captions on the images [first_image, first_image + B).

    Block a of `block_size` images meets every block b of captions; positives are where a = b.
    Each term is divided by the column count of its block, summed over b and averaged over a.
    Summed over workers that share the images, it does not depend on how many workers there are.
    The model's configuration says which terms there are. Of them the softmax alone knows no
    blocks: like CLIP's, it compares every image with every caption of the batch.

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
    if negatives is None:
        negatives = draw_negatives(count, parts, seed, block)
    negatives = own_block(negatives, count, block).to(device)
    image = torch.arange(first_image, first_image + len(image_features.whole), device=device)
    conditioned, multi_positive, whole = ([torch.zeros((), device=device)] for _ in range(3))
    if losses.parts:
        sub_captions = text_features.parts.flatten(0, 1)  # (N*K, D)
        queries = model.attention_pool.queries(sub_captions)
        targets = F.normalize(sub_captions.float(), dim=-1)
        keys, values = model.attention_pool.keys_values(image_features.fine)
        fine_cls = F.normalize(image_features.fine_cls.float(), dim=-1)  # (B, D)
        part_scale = model.part_log_scale.exp()
    if losses.has_whole:
        whole_image = F.normalize(image_features.whole.float(), dim=-1)
        whole_text = F.normalize(text_features.whole.float(), dim=-1)  # (N, D)
        whole_scale = model.whole_log_scale.exp()

    for start in range(0, count, block):
        if losses.parts:
            # Row r of every image block meets the selection that row r of this block made.
            selected = select_sub_captions(start + image % block, start, block, parts, negatives)
            own = selected // parts == image[:, None]  # (B, block+K-1)
            for first in range(0, len(image), block):
                rows = slice(first, first + block)
                cosine = checkpoint(
                    pooled_cosine,
                    model.attention_pool,
                    queries,
                    targets,
                    selected[rows],
                    keys[rows],
                    values[rows],
                    use_reentrant=False,
                )
                conditioned.append(_sigmoid_loss(part_scale * cosine + model.part_bias, own[rows]))

            columns = torch.arange(start * parts, (start + block) * parts, device=device)
            own = columns // parts == image[:, None]  # (B, block*K)
            cosine = _cosine(fine_cls, targets[columns])
            multi_positive.append(_sigmoid_loss(part_scale * cosine + model.part_bias, own))

        if losses.whole == "sigmoid":
            columns = torch.arange(start, start + block, device=device)
            own = columns == image[:, None]  # (B, block)
            cosine = _cosine(whole_image, whole_text[columns])
            whole.append(_sigmoid_loss(whole_scale * cosine + model.whole_bias, own))

    blocks = count // block
    terms = [torch.stack(term).sum() / blocks for term in (conditioned, multi_positive, whole)]
    if losses.whole == "softmax":
        others = image_features.whole if all_whole_images is None else all_whole_images
        terms[2] = _softmax_loss(whole_image, others, whole_text, image, whole_scale)
    return CAFTLoss(*terms)


def draw_negatives(count: int, parts: int, seed: int, block: int) -> Tensor:
    """Seeded `negatives` (N, block-1) for `caft_loss`, the same on every worker."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(parts, (count, block - 1), generator=generator)


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


def pooled_cosine(
    pool: AttentionPool,
    queries: Tensor,
    targets: Tensor,
    selected: Tensor,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    """Cosine (B, C) of each image's selected sub-captions with what they gather from it."""
    pooled = pool(queries[selected], keys, values)  # (B, C, D)
    return (F.normalize(pooled.float(), dim=-1) * targets[selected]).sum(dim=-1)


def _cosine(images: Tensor, texts: Tensor) -> Tensor:
    """(B, C) products of unit vectors in float32: a scale of up to 100 follows, for which the
    eight bits of a bfloat16 are too few."""
    with torch.autocast(images.device.type, enabled=False):
        return images @ texts.T


def _sigmoid_loss(logits: Tensor, positive: Tensor) -> Tensor:
    """Sum of -log sigmoid(+-logit) over all pairs, divided by the number of columns."""
    signed = torch.where(positive, logits, -logits)
    return -F.logsigmoid(signed).sum() / logits.shape[1]


def _softmax_loss(
    whole_image: Tensor, all_images: Tensor, whole_text: Tensor, own: Tensor, scale: Tensor
) -> Tensor:
    """This worker's share of CLIP's symmetric cross-entropy: the image to text direction of its
    images and the text to image direction of their captions, over the N of the batch.

    Args:
        whole_image: (B, D) normalised; `own` (B,) are their places in the batch.
        all_images: (N, D) embeddings; whole_text: (N, D) normalised.
    """
    if len(all_images) != len(whole_text):
        raise ValueError(
            f"softmax over {len(whole_text)} captions needs as many images, got {len(all_images)}; "
            "pass all_whole_images"
        )
    all_images = F.normalize(all_images.float(), dim=-1)
    to_text = scale * _cosine(whole_image, whole_text)  # (B, N)
    to_image = scale * _cosine(whole_text[own], all_images)
    entropies = [F.cross_entropy(logits, own, reduction="sum") for logits in (to_text, to_image)]
    return torch.stack(entropies).sum() / (2 * len(whole_text))
