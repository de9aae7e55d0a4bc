"""Exact search of nearest embeddings, by blocks that fit a CPU's cache.
Over a matrix of rows, which may be float16 and mapped from a file; needs no index."""

from __future__ import annotations

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from caft.errors import DataError

BLOCK_VALUES = 2**19  # of the matrix at a time and thread: 2 MB in float32
TINY = 1e-12  # as F.normalize
ROWS = 64  # blocks are multiples: a product's last bits depend on its shape


class Nearest(NamedTuple):
    """The best rows of a matrix for Q queries, best first; of equal scores the lower row."""

    rows: Tensor  # (Q, k) int64
    scores: Tensor  # (Q, k) float32


@torch.inference_mode()
def nearest(
    matrix: np.ndarray | Tensor,
    queries: Tensor,
    count: int,
    cosine: bool = True,
    threads: int | None = None,
) -> Nearest:
    """The `count` rows of a matrix with the greatest cosine with each query.

    Exact: every row meets every query, in float32 whatever type the rows are stored in. Memory
    beside the matrix is some megabytes a thread.

    Args:
        matrix: (N, D) embeddings, float16 or float32, in memory or as `numpy.load(file,
            mmap_mode="r")` gives it.
        queries: (Q, D), or (D,) for one.
        cosine: False: by inner products.
        threads: None: one for each CPU this process may use.

    Raises:
        DataError: queries of another width.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        rows = torch.from_numpy(matrix) if isinstance(matrix, np.ndarray) else matrix
    queries = torch.atleast_2d(queries).float()
    if queries.shape[-1] != rows.shape[1]:
        raise DataError(
            f"queries of width {queries.shape[-1]}: the embeddings have {rows.shape[1]}; both "
            "have to come from one model"
        )
    if cosine:
        queries = F.normalize(queries, dim=-1)
    columns = queries.T.contiguous()  # (D, Q)
    count = min(count, len(rows))
    workers = threads or len(os.sched_getaffinity(0))
    size = max(ROWS, BLOCK_VALUES // max(1, rows.shape[1]) // ROWS * ROWS)
    share = max(1, -(-len(rows) // (workers * size))) * size  # rows of a thread, in whole blocks
    starts = range(0, len(rows), share)

    def best_of(start: int) -> Nearest:
        torch.set_num_threads(1)  # of this thread: blocks are too small to be shared
        return _best(rows[start : start + share], columns, count, size, start, cosine)

    with ThreadPoolExecutor(workers) as pool:
        parts = list(pool.map(best_of, starts))
    return _first(parts, count, len(queries))


def _best(
    rows: Tensor, columns: Tensor, count: int, size: int, first: int, cosine: bool
) -> Nearest:
    """The best of rows (n, D) whose numbers begin at `first`, for the queries `columns` (D, Q)."""
    queries = columns.shape[1]
    best = _first([], 0, queries)
    for start in range(0, len(rows), size):
        block = rows[start : start + size].float()
        length = len(block)
        if length < size:  # equal rows score alike in all blocks
            block = F.pad(block, (0, 0, 0, size - length))
        scores = block @ columns  # (b, Q)
        if cosine:  # lengths anew: float16 has rounded those of unit rows
            scores /= torch.linalg.vector_norm(block, dim=1, keepdim=True).clamp_(min=TINY)
        scores = scores[:length]
        if best.rows.shape[1] == count:
            # Later rows lose against equal ones, so only what is greater can still come in.
            inside = (scores > best.scores[:, -1]).any(dim=1).nonzero()[:, 0]
            if not len(inside):
                continue
            scores = scores[inside]
        else:
            inside = torch.arange(length)
        found = (first + start + inside).expand(queries, -1)
        best = _first([best, Nearest(found, scores.T)], count, queries)
    return best


def _first(parts: list[Nearest], count: int, queries: int) -> Nearest:
    """The best of several, each of which has its equal scores by row, as the parts are too."""
    rows = torch.cat([torch.zeros(queries, 0, dtype=torch.int64), *(p.rows for p in parts)], dim=1)
    scores = torch.cat([torch.zeros(queries, 0), *(part.scores for part in parts)], dim=1)
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
    return Nearest(rows.gather(1, order), scores.gather(1, order))
