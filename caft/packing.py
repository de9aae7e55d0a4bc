"""Packs sub-captions of many lengths into rows of one length, so that no work goes into padding.
Between the tokenizer and the part-text encoder; runs on the host, before a device sees a token."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

COMPILED_ROW_MULTIPLE = 16  # rows then come in few counts, so few graphs are compiled
EMPTY = -1  # the text that a place left over at a row's end belongs to


@dataclass(frozen=True)
class PackedTexts:
    """B captions of K sub-captions, laid end to end in R rows of L tokens."""

    tokens: Tensor  # (R, L) ids, 0 where a row's end is empty
    positions: Tensor  # (R, L) place of a token in its own sub-caption
    owners: Tensor  # (R, L) sub-caption of a token, EMPTY at a row's end
    ends: Tensor  # (B*K,) place of each sub-caption's end token among the R*L
    captions: int
    parts: int

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedTexts:
        moved = {
            name: getattr(self, name).to(device, non_blocking=non_blocking)
            for name in ("tokens", "positions", "owners", "ends")
        }
        return replace(self, **moved)

    def attention_mask(self) -> Tensor:
        """(R, 1, L, L): a token attends to itself and to what stands before it in its own text."""
        length = self.owners.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.owners.device).tril()
        return ((self.owners[:, :, None] == self.owners[:, None, :]) & causal)[:, None]


def pack_texts(tokens: Tensor, row_length: int, row_multiple: int = 1) -> PackedTexts:
    """Lay sub-captions into as few rows as best fit finds, the longest first.

    Args:
        tokens: ids (B, K, T), zeros after the end token, which is the largest id of its text.
        row_length: tokens of a row; a batch that fits into less than one row gets a shorter one.
        row_multiple: the number of rows is rounded up to a multiple, so that a compiled model
            meets few shapes.

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
    count = -(-(int(rows.max(initial=0)) + 1) // row_multiple) * row_multiple
    inside = np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths)
    target = np.repeat(rows * row_length + starts, lengths) + inside
    owner = np.repeat(np.arange(len(ids)), lengths)

    def laid_out(values: np.ndarray, empty: int) -> Tensor:
        flat = np.full(count * row_length, empty, dtype=np.int64)
        flat[target] = values
        return torch.from_numpy(flat.reshape(count, row_length)).to(tokens.device)

    ends = torch.from_numpy(rows * row_length + starts + lengths - 1).to(tokens.device)
    return PackedTexts(
        laid_out(ids[owner, inside], 0),
        laid_out(inside, 0),
        laid_out(owner, EMPTY),
        ends,
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
