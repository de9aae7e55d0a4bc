"""Reads a chunk of a source and prepares its images for a model; what cannot be read is rejected.
First half of the embed stage's work: tasks on CPUs, with the readers of the data stage."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import cv2
import numpy as np

from caft.errors import DataError
from pipelines import storage
from pipelines.data.chunk import CANDIDATE_REJECT_SCHEMA, fetch, read_chunk, reject_row
from pipelines.data.config import DataConfig
from pipelines.data.images.decoder import Decoder
from pipelines.data.images.prepare import ImageRefused
from pipelines.data.join.values import JOINABLE
from pipelines.data.paths import Chunk, Layout
from pipelines.data.write import ParquetSink
from pipelines.embed.pieces import places_in
from pipelines.evaluate.adapters import Preprocess
from pipelines.failures import located, one_voice

ROW, IMAGE, REASONS = "row", "image_bytes", "reasons"  # columns beside those of the model
REJECTS_GROUP = 10_000
Row = dict[str, Any]


@dataclass(frozen=True)
class Reader:
    """A Ray Data function: an item of a chunk in, batches of prepared images out.

    Attributes:
        preprocess: of the model, without its weights.
        images: whether the images travel on.
    """

    data: DataConfig
    layout: Layout
    preprocess: Preprocess
    images: bool
    batch_size: int

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
        """Columns over some rows: ROW (JSON of chunk, place, key, url, file, width and height),
        REASONS (JSON of the chunk's rejects so far), IMAGE if asked, and the model's."""
        cv2.setNumThreads(1)  # one task is one core; Ray runs several
        item = json.loads(batch["item"][0])
        chunk = Chunk(**item["chunk"])
        with one_voice(f"reading images of chunk {chunk.number}"), located(chunk.path):
            yield from self._batches(chunk, places_in(self.layout, item["pieces"]))

    def _batches(self, chunk: Chunk, done: set[int]) -> Iterator[dict[str, Any]]:
        """The batches of rows whose place is not in `done`; at the end the chunk's receipt."""
        reasons: Counter[str] = Counter()
        kept, path = len(done), self.layout.candidate_rejects(chunk.number)
        with (
            Decoder(self.data.image) as decoder,
            ParquetSink(path, CANDIDATE_REJECT_SCHEMA, REJECTS_GROUP) as rejects,
        ):
            rows = self._decoded(chunk, done, decoder)
            while some := list(islice(rows, self.batch_size)):
                good = [row for row in some if row["reason"] is None]
                columns, good = self._prepared(good)
                for row in some:
                    if row["reason"] is not None:
                        reasons[row["reason"]] += 1
                        rejects.add(reject_row(row))
                kept += len(good)
                if good:
                    told = json.dumps(reasons)
                    columns[ROW] = [_described(row, chunk) for row in good]
                    columns[REASONS] = [told] * len(good)
                    if self.images:
                        columns[IMAGE] = [row["image"] for row in good]
                    yield columns
        receipt = {"kept": kept, "rejects": rejects.entry, "reasons": dict(reasons)}
        storage.write_json(self.layout.receipt("chunk", chunk.number), receipt)

    def _decoded(self, chunk: Chunk, done: set[int], decoder: Decoder) -> Iterator[Row]:
        """The chunk's rows with their image, or a reason."""
        rows = (r for r in read_chunk(chunk, self.data, self.layout) if r["place"] not in done)
        for row in fetch(map(without_captions, rows), self.data):
            if row["reason"] is None:
                with located(f"row {row['url']}"):
                    decode(row, decoder)
            yield row

    def _prepared(self, rows: list[Row]) -> tuple[dict[str, Any], list[Row]]:
        """What the model reads of rows, and those of which it reads something."""
        if not rows:
            return {}, []
        try:
            return dict(self.preprocess(rows)), rows
        except DataError:
            for row in rows:
                try:
                    self.preprocess([row])
                except DataError as error:
                    row |= {"reason": "truncated_image", "detail": str(error)}
        good = [row for row in rows if row["reason"] is None]
        return (dict(self.preprocess(good)) if good else {}), good


def without_captions(row: Row) -> Row:
    """The row, without a reason that lies in its captions."""
    if row["reason"] in JOINABLE:
        row |= {"reason": None, "detail": ""}
    return row


def decode(row: Row, decoder: Decoder) -> None:
    """Set a row's `image`, as the data stage would store it, or its reason."""
    size = {name: row[name] for name in ("original_width", "original_height") if row.get(name)}
    try:
        row |= decoder.prepare(row.pop("data")) | size
    except ImageRefused as refusal:
        row["reason"], row["detail"] = refusal.args


def decoded_images(rows: Iterable[Row], data: DataConfig) -> Iterator[Row]:
    """Rows of lists, fetched and decoded; see `decode`."""
    with Decoder(data.image) as decoder:
        for row in fetch(rows, data):
            if row["reason"] is None:
                decode(row, decoder)
            yield row


def _described(row: Row, chunk: Chunk) -> str:
    return json.dumps(
        {
            "chunk": chunk.number,
            "place": row["place"],
            "key": row["key"],
            "url": row["url"],
            "file": chunk.path if chunk.container else "",
            "width": row["original_width"],
            "height": row["original_height"],
        }
    )
