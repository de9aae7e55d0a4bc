"""A worker's batches on its device: the next one is packed, pinned and copied while a step runs.
Between Ray Data's arrays on the host (ingest.py) and a training step (step.py)."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from caft.model import CAFT
from caft.packing import COMPILED_ROW_MULTIPLE, TENSORS, PackedTexts
from pipelines.superpixel_columns import missing_rows
from pipelines.train.config import TrainConfig
from pipelines.train.ingest import Batch

SPREADS = 6.0  # standard deviations of a batch's tokens that rows have room for beyond the mean
GAPS = 1 / 128  # of packed rows at most: the longest texts are laid first
PUT_EVERY_S = 1.0  # a thread that hands over a batch looks so often whether anyone still wants it


@dataclass(frozen=True)
class DeviceBatch:
    """A worker's share of a step, on its device.

    Attributes:
        host: what it was made of.
        superpixels: (B, S, S) int16, -1 in the rows `missing` (m,); None: the model computes all.
        texts: packed, of each micro-batch.
        tokens: of all texts, without padding.
    """

    host: Batch
    images: Tensor
    superpixels: Tensor | None
    missing: Tensor | None
    texts: tuple[PackedTexts, ...]
    tokens: int

    def tensors(self) -> list[Tensor]:
        """All that lies on the device."""
        of_texts = [getattr(text, name) for text in self.texts for name in TENSORS]
        found = [self.images, self.superpixels, self.missing, *of_texts]
        return [tensor for tensor in found if tensor is not None]


class Sender:
    """Brings batches to a worker's device, without waiting for it.

    A compiled model is given texts in one number of rows, because another number is another graph,
    and all workers would wait for the one that compiles it. `prepare` chooses it.
    """

    def __init__(self, model: CAFT, config: TrainConfig, device: torch.device) -> None:
        self._model, self._device = model, device
        self._micro_batch = config.scaling.micro_batch
        self._compiled = config.scaling.compile
        self._rows = 1

    def send(self, batch: Batch) -> DeviceBatch:
        """`batch` on the device, or on its way there in the order of the current stream."""
        size = self._micro_batch or len(batch.images)
        packed = [self._packed(tokens) for tokens in batch.tokens.split(size)]
        missing = None if batch.superpixels is None else missing_rows(batch.superpixels)
        return DeviceBatch(
            batch,
            self._sent(batch.images),
            None if batch.superpixels is None else self._sent(batch.superpixels),
            None if missing is None else self._sent(missing),
            tuple(text.each(self._sent) for text in packed),
            int(_lengths(batch.tokens).sum()),
        )

    def prepare(self, batch: Batch) -> None:
        """Choose the rows of a compiled model's texts, the same on every worker, from how long the
        texts of each worker's first batch are; every worker calls it, before the first `send`.

        The tokens of a batch are a sum over images that are drawn at random, so that one in some
        hundred million batches is more than `SPREADS` from the mean.
        """
        if not self._compiled:
            return
        of_images = _lengths(batch.tokens).sum(dim=1).double()  # (B,)
        count = torch.ones_like(of_images)
        sums = torch.stack([count, of_images, of_images.square()]).sum(dim=1)
        if dist.is_initialized():
            sums = sums.to(self._device)
            dist.all_reduce(sums)
        images, tokens, squares = sums.tolist()
        mean = tokens / images
        spread = math.sqrt(max(0.0, squares / images - mean**2))
        size = self._micro_batch or len(batch.images)
        due = (size * mean + SPREADS * math.sqrt(size) * spread) * (1 + GAPS)
        length = self._model.part_text_encoder.row_length
        self._rows = _rounded_up(math.ceil(due / length))

    def _packed(self, tokens: Tensor) -> PackedTexts:
        if not self._compiled:
            return self._model.pack_texts(tokens)
        packed = self._model.pack_texts(tokens, least_rows=self._rows)
        if len(packed.tokens) > self._rows:
            self._rows = _rounded_up(len(packed.tokens))
            packed = self._model.pack_texts(tokens, least_rows=self._rows)
        return packed

    def _sent(self, tensor: Tensor) -> Tensor:
        if self._device.type != "cuda":
            return tensor.to(self._device)
        return tensor.pin_memory().to(self._device, non_blocking=True)


def _lengths(tokens: Tensor) -> Tensor:
    """Tokens of each text, (B, K), of ids (B, K, T): the end token is the largest id."""
    return tokens.argmax(dim=-1) + 1


def _rounded_up(rows: int) -> int:
    return -(-rows // COMPILED_ROW_MULTIPLE) * COMPILED_ROW_MULTIPLE


def sent_ahead(
    batches: Iterator[Batch], sender: Sender, device: torch.device
) -> Iterator[DeviceBatch]:
    """`batches` on the device. On a GPU a thread makes and copies the next one, on a stream of its
    own, while the caller works on the last; on CPUs each is made when it is asked for."""
    if device.type != "cuda":
        yield from map(sender.send, batches)
        return
    stream = torch.cuda.Stream(device)
    made: queue.Queue[Any] = queue.Queue(maxsize=1)
    left = threading.Event()

    def work() -> None:
        torch.cuda.set_device(device)
        try:
            with torch.cuda.stream(stream):
                for batch in batches:
                    on_device = sender.send(batch)
                    if not _handed_over(made, (on_device, stream.record_event()), left):
                        return
            _handed_over(made, None, left)
        except BaseException as error:  # the caller raises it
            _handed_over(made, error, left)

    threading.Thread(target=work, name="batches ahead", daemon=True).start()
    try:
        while (item := made.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            batch, arrived = item
            current = torch.cuda.current_stream(device)
            current.wait_event(arrived)
            for tensor in batch.tensors():
                tensor.record_stream(current)  # its memory is used until a step has ended
            yield batch
    finally:
        left.set()


def _handed_over(made: queue.Queue[Any], item: Any, left: threading.Event) -> bool:
    """Whether `item` was taken before the caller left."""
    while not left.is_set():
        try:
            made.put(item, timeout=PUT_EVERY_S)
            return True
        except queue.Full:
            continue
    return False
