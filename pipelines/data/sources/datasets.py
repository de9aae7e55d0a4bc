"""Reads datasets that the data stage wrote, to filter them again without downloading.
One of the readers of containers; a part file is one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipelines import storage
from pipelines.data.config import SourceConfig
from pipelines.data.dataset import open_dataset
from pipelines.data.sources import paths
from pipelines.data.sources.parquet import open_parquet
from pipelines.data.sources.rows import new_row

BATCH_ROWS = 64
COLUMNS = ["key", "url", "image", "original_width", "original_height", "captions", "split"]


def list_parts(source: SourceConfig) -> list[paths.File]:
    """The part files of a finished dataset.

    Raises:
        DataError: it is not finished, or parts are missing or damaged.
    """
    dataset = open_dataset(source.path)
    folder = paths.full_path(source.path)
    return [paths.File(storage.join(folder, entry.name), entry.bytes) for entry in dataset.files]


def count_rows(source: SourceConfig) -> int:
    return open_dataset(source.path).rows


def read_part(path: str, source: SourceConfig, images: bool = True) -> Iterator[dict[str, Any]]:
    """Stream a part's rows, with their image if asked; they keep their split unless the source
    sets one."""
    columns = [name for name in COLUMNS if images or name != "image"]
    with open_parquet(path) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=columns):
            for stored in batch.to_pylist():
                row = new_row(stored["url"], source)
                row["key"] = stored["key"]
                row["split"] = source.split or stored["split"]
                row["texts"] = [
                    {
                        "source": caption["source"],
                        "kind": caption["kind"],
                        "texts": caption["sentences"],
                        "sentences": True,
                    }
                    for caption in stored["captions"]
                ]
                row["data"] = stored.get("image")
                row["original_width"] = stored["original_width"]
                row["original_height"] = stored["original_height"]
                yield row
