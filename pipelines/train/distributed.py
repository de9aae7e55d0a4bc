"""The global loss on one worker: its own images against the texts of every worker.
The only tensor communication of a step beside DeepSpeed's own gradient reduction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from caft.batch_norm import NormBlocks, batch_statistics, set_norm_blocks
from caft.dropout import Draws
from caft.losses import PLAIN_STEPS, CAFTLoss, PartSteps, caft_loss
from caft.model import CAFT, ImageFeatures, TextFeatures
from caft.packing import PackedTexts

MOST_GRAPHS = 64  # of one function
KEPT_PAIRS = 8  # of blocks of 256, in 0.2 GB each, where a graph computes them
TEXT_SIDE = ("part_text_encoder.", "whole_text_encoder.", "part_projection", "whole_projection")
IMAGE_SIDE = ("image_encoder.", "fine_projection", "coarse_projection")


class TrainingModel(nn.Module):
    """CAFT and its loss as one module, so that DeepSpeed sees every parameter's use.

    A batch may come in micro-batches. Each is encoded and forgotten but for its embeddings, the
    loss is that of the whole batch, and backward encodes one micro-batch after the other again:
    the same gradients in the memory of one.
    """

    batch_statistics: Tensor  # (2, channels): what the norms met in the last forward, on average
    finite_samples: Tensor  # (2, B) of images and captions; of forwards in evaluation mode alone
    before_exchange: Callable[[], None] | None = None  # called when a worker first needs the others

    def __init__(
        self,
        model: CAFT,
        block_size: int,
        compiled: bool = False,
        batch_norm_images: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.block_size = block_size
        if batch_norm_images is not None:
            set_norm_blocks(model, NormBlocks(batch_norm_images, _rank(), gather_rows))
        # The exchange of texts between workers stands between these graphs.
        compile_it = _compiled if compiled else _as_it_is
        self._encode_texts: Callable = compile_it(model.encode_text)
        self._encode_images: Callable = compile_it(self._encoded_images)
        self._part_steps = PartSteps(
            compile_it(PLAIN_STEPS.project),
            compile_it(PLAIN_STEPS.pair),
            kept=KEPT_PAIRS if compiled else 0,
        )
        if model.superpixel_network is not None:
            model.superpixel_network.compiled = compiled

    def parameters_in_order(self) -> list[nn.Parameter]:
        """What is trained, as forward comes to it: texts, images, and what meets both."""
        sides = (TEXT_SIDE, IMAGE_SIDE)
        found = self.model.named_parameters()
        placed = [
            (next((n for n, side in enumerate(sides) if name.startswith(side)), len(sides)), p)
            for name, p in found
            if p.requires_grad
        ]
        return [p for _, p in sorted(placed, key=lambda pair: pair[0])]

    def forward(
        self,
        images: Tensor,
        superpixels: Tensor,
        texts: Tensor | PackedTexts | Sequence[PackedTexts],
        negatives: Tensor,
        draws: Draws | None = None,
    ) -> CAFTLoss:
        """The part of the global loss that belongs to this worker's images.

        Args:
            images: (B, 3, H, W) uint8, superpixels (B, H, W), texts of B captions: this worker's.
                Several texts of equal size: each makes a micro-batch with its images.
            negatives: of the global batch, the same on every worker; see `caft_loss`.
            draws: of dropout, for the B images.
        """
        encode = self._encoded
        if not isinstance(texts, Sequence):
            encoded = [encode(images, superpixels, texts, draws)]
        else:
            count = len(texts)
            own_draws = [None] * count if draws is None else draws.chunk(count)
            shares = zip(
                images.chunk(count), superpixels.chunk(count), texts, own_draws, strict=True
            )
            encoded = [checkpoint(encode, *share, use_reentrant=False) for share in shares]
        if self.before_exchange is not None:
            self.before_exchange()
        of_images, of_texts, statistics = zip(*encoded, strict=True)
        self.batch_statistics = torch.stack(statistics).mean(dim=0)
        if not self.training:
            self.finite_samples = torch.stack([_finite_rows(of_images), _finite_rows(of_texts)])
        image_features = _joined(of_images, superpixels)
        texts_of_all = TextFeatures(
            gather_rows(torch.cat([text.parts for text in of_texts])),
            gather_rows(torch.cat([text.whole for text in of_texts])),
        )
        softmax = self.model.config.losses.whole == "softmax"
        return caft_loss(
            image_features,
            texts_of_all,
            self.model,
            negatives,
            block_size=self.block_size,
            first_image=_rank() * len(images),
            all_whole_images=gather_rows(image_features.whole) if softmax else None,
            part_steps=self._part_steps,
        )

    def _encoded(
        self, images: Tensor, superpixels: Tensor, texts: Tensor | PackedTexts, draws: Draws | None
    ) -> tuple[ImageFeatures, TextFeatures, Tensor]:
        # Evaluation mode, in which guard.py looks for bad samples, is not worth other graphs.
        encode_texts = self._encode_texts if self.training else self.model.encode_text
        encode_images = self._encode_images if self.training else self._encoded_images
        # Texts first, so that backward comes to them last: their gradients are fewer, and the last
        # ones travel while nothing is left to compute.
        of_texts = encode_texts(texts)
        of_images, statistics = encode_images(images, superpixels, draws)
        return of_images, of_texts, statistics

    def _encoded_images(
        self, images: Tensor, superpixels: Tensor, draws: Draws | None
    ) -> tuple[ImageFeatures, Tensor]:
        features = self.model.encode_image(images, superpixels, draws)
        # No loss reads the assignments.
        return replace(features, assignments=[]), batch_statistics(self.model)


def _finite_rows(features: Sequence[ImageFeatures] | Sequence[TextFeatures]) -> Tensor:
    """(B,) whether all that a loss reads of a sample is finite, of micro-batches end to end."""
    names = ("whole", "fine", "fine_cls") if hasattr(features[0], "fine") else ("whole", "parts")
    rows = [
        torch.stack([getattr(one, name).isfinite().flatten(1).all(dim=1) for name in names])
        for one in features
    ]
    return torch.cat(rows, dim=1).all(dim=0)


def _joined(features: Sequence[ImageFeatures], superpixels: Tensor) -> ImageFeatures:
    """What a loss reads of the micro-batches, end to end."""

    def rows(name: str) -> Tensor:
        return torch.cat([getattr(one, name) for one in features])

    joined = {name: rows(name) for name in ("whole", "fine", "fine_cls", "coarse")}
    return ImageFeatures(assignments=[], superpixels=superpixels, **joined)


def _compiled(function: Callable) -> Callable:
    # Texts that outgrow their number of rows make another graph; torch allows eight.
    torch._dynamo.config.recompile_limit = MOST_GRAPHS
    return torch.compile(function, fullgraph=True, dynamic=False)


def _as_it_is(function: Callable) -> Callable:
    return function


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def gather_rows(local: Tensor) -> Tensor:
    """Concatenate (B, ...) tensors of all workers in rank order, with gradients to each."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return local
    return _GatherRows.apply(local)


class _GatherRows(torch.autograd.Function):
    """All-gather forward; backward sums what every worker's loss says of the local rows."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        shares = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(shares, local.contiguous())
        return torch.cat(shares)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]
