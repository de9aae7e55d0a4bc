"""Embeds prepared images and writes them, piece by piece.
Second half of the embed stage's work: actors that hold the model, on CPUs or GPUs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from caft.errors import CheckpointError
from pipelines.data.paths import Layout
from pipelines.embed.pieces import PLACE, as_lists, schema_of, write_piece
from pipelines.embed.read import IMAGE, REASONS, ROW
from pipelines.evaluate.adapters import Adapter, open_adapter
from pipelines.failures import located, one_voice

FIELDS = ("key", "url", "file", "width", "height", "place")


class PieceEncoder:
    """Ray Data actor: blocks of prepared images in, a line about each piece out."""

    def __init__(
        self,
        checkpoint: str,
        layout: Layout,
        fine: bool,
        batch_size: int,
        use_gpu: bool,
        threads: int,
    ) -> None:
        self._checkpoint, self._layout, self._fine = checkpoint, layout, fine
        self._batch_size = batch_size
        self._threads = min(threads, len(os.sched_getaffinity(0)))
        self._device = torch.device("cuda" if use_gpu else "cpu")

    @cached_property  # Ray loses the exception of an actor that cannot be made
    def _adapter(self) -> Adapter:
        torch.set_num_threads(self._threads)  # Ray's own number is one for a whole CPU
        adapter = open_adapter(self._checkpoint)
        adapter.to(self._device)
        return adapter

    @one_voice("embedding images")
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Columns over the pieces written: chunk, rows and reasons (JSON of the chunk's rejects
        so far)."""
        rows = [json.loads(row) for row in batch.pop(ROW)]
        reasons, images = batch.pop(REASONS), batch.pop(IMAGE, None)
        written: dict[str, list[Any]] = {"chunk": [], "rows": [], "reasons": []}
        chunks = np.array([row["chunk"] for row in rows], dtype=np.int64)
        for chunk in np.unique(chunks).tolist():  # one, unless Ray has joined blocks
            here = np.flatnonzero(chunks == chunk)
            some = [rows[n] for n in here]
            with located(f"{len(some)} images from {some[0]['url']}"):
                features = self._features(
                    {name: array[here] for name, array in batch.items()}, some
                )
            kept = None if images is None else [images[n] for n in here]
            piece = write_piece(self._layout, chunk, table_of(some, features, kept))
            written["chunk"].append(chunk)
            written["rows"].append(piece.rows)
            written["reasons"].append(reasons[here[-1]])
        return written

    @torch.inference_mode()
    def _features(
        self, columns: dict[str, np.ndarray], rows: Sequence[dict[str, Any]]
    ) -> dict[str, np.ndarray]:
        parts: list[dict[str, np.ndarray]] = []
        for start in range(0, len(rows), self._batch_size):
            end = start + self._batch_size
            found = self._adapter.encode_images({n: a[start:end] for n, a in columns.items()})
            parts.append(stored(found, self._fine))
            bad = [
                ~np.isfinite(array).all(tuple(range(1, array.ndim))) for array in parts[-1].values()
            ]
            if np.any(bad):
                url = rows[start + int(np.flatnonzero(np.any(bad, axis=0))[0])]["url"]
                raise CheckpointError(
                    f"{self._checkpoint}: gives features that are no numbers of float16, first for "
                    f"{url}; training has diverged, use an earlier checkpoint"
                )
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def stored(features: dict[str, Tensor], fine: bool) -> dict[str, np.ndarray]:
    """What is kept of a model's image features, in float16: `whole` (n, D) of length 1, and if
    asked `fine` (n, M, D) as it is."""
    kept = {"whole": F.normalize(features["whole"].float(), dim=-1)}
    if fine:
        kept["fine"] = features["fine"]
    return {name: tensor.half().cpu().numpy() for name, tensor in kept.items()}


def table_of(
    rows: Sequence[dict[str, Any]],
    features: dict[str, np.ndarray],
    images: Sequence[bytes] | None = None,
) -> pa.Table:
    """A piece's rows as `schema_of` and PLACE describe them."""
    fine = features["fine"].shape[1:] if "fine" in features else None
    schema = schema_of(features["whole"].shape[1], fine, images is not None).append(PLACE)
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in FIELDS}
    columns |= {name: as_lists(array) for name, array in features.items()}
    if images is not None:
        columns["image"] = list(images)
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)
