"""Packs sub-captions of many lengths into rows of one length, so that no work goes into padding.
Between the tokenizer and the part-text encoder; runs on the host, before a device sees a token."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

COMPILED_ROW_MULTIPLE = 16  # rows then come in few counts, so few graphs are compiled
EMPTY = -1  # the text that a place left over at a row's end belongs to


TENSORS = ("tokens", "positions", "owners", "ends", "bounds")


class Spans(NamedTuple):
    """Consecutive tokens that attend to one another, each to those before it in its own span."""

    bounds: Tensor  # (n + 1,) int32: where each of n spans begins, and where the last one ends
    longest: int  # no span has more tokens


@dataclass(frozen=True)
class PackedTexts:
    """B captions of K sub-captions, laid end to end in R rows of L tokens."""

    tokens: Tensor  # (R, L) ids, 0 where a row's end is empty
    positions: Tensor  # (R, L) place of a token in its own sub-caption
    owners: Tensor  # (R, L) sub-caption of a token, EMPTY at a row's end
    ends: Tensor  # (B*K,) place of each sub-caption's end token among the R*L
    bounds: Tensor  # (B*K + R + 1,) int32: where texts and the rows' empty ends begin; last, R*L
    captions: int
    parts: int

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedTexts:
        return self.each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def each(self, change: Callable[[Tensor], Tensor]) -> PackedTexts:
        """These texts with `change` of every tensor."""
        changed: dict[str, Any] = {name: change(getattr(self, name)) for name in TENSORS}
        return replace(self, **changed)

    def attended(self, dtype: torch.dtype) -> Tensor | Spans:
        """What a token attends to, itself and what stands before it in its own text, for queries
        of `dtype`: spans where the device has a kernel for texts of many lengths, else a mask."""
        if self.tokens.is_cuda and dtype in (torch.float16, torch.bfloat16):
            return Spans(self.bounds, self.tokens.shape[1])
        return self.attention_mask()

    def attention_mask(self) -> Tensor:
        """(R, 1, L, L): true where a token of a row attends to another."""
        length = self.owners.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.owners.device).tril()
        return ((self.owners[:, :, None] == self.owners[:, None, :]) & causal)[:, None]


def pack_texts(
    tokens: Tensor, row_length: int, row_multiple: int = 1, least_rows: int = 1
) -> PackedTexts:
    """Lay sub-captions into as few rows as best fit finds, the longest first.

    Args:
        tokens: ids (B, K, T), zeros after the end token, which is the largest id of its text.
        row_length: tokens of a row; a batch that fits into less than one row gets a shorter one.
        row_multiple: the number of rows is rounded up to a multiple, so that a compiled model
            meets few shapes.
        least_rows: there are no fewer rows; those left over are empty.

    Raises:
        ValueError: a sub-caption is longer than a row.
    """
    captions, parts, width = tokens.shape
    ids = tokens.reshape(-1, width).cpu().numpy()
    lengths = ids.argmax(axis=1) + 1  # (N,)
    row_length = min(row_length, int(lengths.sum()))
    if len(lengths) and lengths.max() > row_length:
        raise ValueError(f"a text of {lengths.max()} tokens does not fit a row of {row_length}")
    rows, starts = _best_fit(lengths, row_length)
    count = max(int(rows.max(initial=0)) + 1, least_rows)
    count = -(-count // row_multiple) * row_multiple
    inside = np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths)
    target = np.repeat(rows * row_length + starts, lengths) + inside
    owner = np.repeat(np.arange(len(ids)), lengths)

    def laid_out(values: np.ndarray, empty: int) -> Tensor:
        flat = np.full(count * row_length, empty, dtype=np.int64)
        flat[target] = values
        return torch.from_numpy(flat.reshape(count, row_length)).to(tokens.device)

    begins = rows * row_length + starts
    filled = np.bincount(rows, weights=lengths, minlength=count).astype(np.int64)
    empty_ends = np.arange(count) * row_length + filled
    bounds = np.sort(np.concatenate([begins, empty_ends, [count * row_length]])).astype(np.int32)
    ends = torch.from_numpy(begins + lengths - 1).to(tokens.device)
    return PackedTexts(
        laid_out(ids[owner, inside], 0),
        laid_out(inside, 0),
        laid_out(owner, EMPTY),
        ends,
        torch.from_numpy(bounds).to(tokens.device),
        captions,
        parts,
    )


def _best_fit(lengths: np.ndarray, row_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and first place of each text: into the fullest row that still has room for it."""
    rows, starts = np.zeros_like(lengths), np.zeros_like(lengths)
    room: list[tuple[int, int]] = []  # (free places, row), sorted
    opened = 0
    for n in np.argsort(-lengths, kind="stable"):
        length = int(lengths[n])
        at = bisect_left(room, (length, -1))
        if at < len(room):
            free, row = room.pop(at)
        else:
            free, row = row_length, opened
            opened += 1
        rows[n], starts[n] = row, row_length - free
        if free > length:
            insort(room, (free - length, row))
    return rows, starts
