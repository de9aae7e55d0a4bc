"""Approximate search above some million rows: FAISS proposes rows, exact cosines rank them.
An extra of this project; exact search (`caft.search`) needs none of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from caft.errors import ConfigError, StorageError
from caft.search import Nearest, nearest
from pipelines import storage
from pipelines.embed.embedding import Embedding

LISTS_PER_ROOT = 4  # inverted lists: this times the root of the rows, as FAISS's guidelines say
TRAINING_PER_LIST = 64  # rows that the lists' centres are fitted to
LEAST_PER_LIST = 39  # of which FAISS warns
PROBED = 32  # lists that a query looks into
PROPOSED = 4  # times as many rows as are asked for
ADDED_ROWS = 100_000  # at a time


def nearest_of_index(embedding: Embedding, query: Tensor, count: int) -> Nearest:
    """As `caft.search.nearest` of an embedding's rows and one query, of those that an index
    proposes; the first search makes the index, a file beside the parts.

    Raises:
        ConfigError: FAISS is not installed.
    """
    index = _index(embedding)
    proposed = min(PROPOSED * count, embedding.rows)
    rows = index.search(query[None].float().numpy(), proposed)[1][0]
    rows = np.sort(rows[rows >= 0])  # the earlier of equal rows comes first
    best = nearest(embedding.whole[rows], query, count)
    return Nearest(torch.from_numpy(rows)[best.rows], best.scores)


def _index(embedding: Embedding) -> Any:
    try:
        import faiss
    except ImportError:
        raise ConfigError(
            "--approximate: faiss-cpu is not installed; pip install -e '.[faiss]' -c "
            "constraints.txt, or leave it out: exact search needs no package"
        ) from None
    path = storage.join(embedding.folder, f"approximate-{embedding.fingerprint[:16]}.faiss")
    if storage.is_local(path) and storage.exists(path):
        index: Any = faiss.read_index(storage.filesystem(path)[1], faiss.IO_FLAG_MMAP)
    else:
        index = _make(faiss, embedding.whole)
        if storage.is_local(path):
            try:
                with storage.staged(path) as file:
                    faiss.write_index(index, str(file))
            except StorageError:  # a folder that this user can only read
                pass
    index.nprobe = PROBED
    return index


def _make(faiss: Any, matrix: np.ndarray) -> Any:
    """Inverted lists of rows at 8 bits a number."""
    rows, width = matrix.shape
    lists = max(1, min(round(LISTS_PER_ROOT * rows**0.5), rows // LEAST_PER_LIST))
    print(f"search: makes an index of {rows:,} rows, {lists:,} lists", flush=True)
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(width), width, lists,
        faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT,
    )  # fmt: skip
    chosen = np.random.default_rng(0).permutation(rows)[: max(lists * TRAINING_PER_LIST, 256)]
    index.train(matrix[np.sort(chosen)].astype(np.float32))
    for start in range(0, rows, ADDED_ROWS):
        index.add(matrix[start : start + ADDED_ROWS].astype(np.float32))
    return index
