"""The images of found rows: from the embedding where it keeps them, else from their source.
A search asks for a few at a time; each comes through the data stage's decoder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow.parquet as pq

from caft.config import validate
from caft.errors import CAFTError
from pipelines import storage
from pipelines.data.config import DataConfig, SourceConfig
from pipelines.data.images.decoder import Decoder
from pipelines.data.sources import detect_kind, read_container
from pipelines.data.sources.rows import new_row
from pipelines.embed.config import EmbedConfig
from pipelines.embed.embedding import Embedding
from pipelines.embed.read import decode, decoded_images, without_captions

Row = dict[str, Any]


def read_images(embedding: Embedding, numbers: Sequence[int]) -> list[Row]:
    """Some rows of an embedding with `key`, `url` and `image`; where that cannot be read, `image`
    is None and `detail` says why."""
    columns = ["key", "url", "file", *(["image"] if embedding.has_images else [])]
    rows = embedding.take(numbers, columns)
    if embedding.has_images:
        return rows
    data = validate(EmbedConfig, dict(embedding.manifest["config"]), embedding.folder).as_data()
    source = data.sources[0]
    found: dict[str, Row] = {}
    try:
        lists = [
            new_row(row["url"], source) | {"key": row["key"]} for row in rows if not row["file"]
        ]
        found |= {row["key"]: row for row in decoded_images(lists, data)}
        found |= _from_containers(rows, source, data)
        detail = "the source no longer has this row"
    except CAFTError as error:
        detail = str(error)
    return [_joined(row, found.get(row["key"]), detail) for row in rows]


def _joined(row: Row, found: Row | None, detail: str) -> Row:
    if found is None:
        return row | {"image": None, "detail": detail}
    if found["reason"] is not None:
        return row | {"image": None, "detail": f"{found['reason']}: {found['detail']}"}
    return row | {"image": found["image"]}


def _from_containers(rows: Sequence[Row], source: SourceConfig, data: DataConfig) -> dict[str, Row]:
    """Decoded rows of tars, Parquet files and datasets, by key."""
    wanted: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row["file"]:
            wanted[row["file"]].add(row["key"])
    found: dict[str, Row] = {}
    if not wanted:
        return found
    read = _of_dataset if detect_kind(source) == "dataset" else _of_container
    with Decoder(data.image) as decoder:
        for path, keys in wanted.items():
            for row in read(path, keys, source):
                row = without_captions(row)
                if row["reason"] is None:
                    decode(row, decoder)
                found[row["key"]] = row
    return found


def _of_container(path: str, keys: set[str], source: SourceConfig) -> Iterator[Row]:
    """Reads up to the last one that is wanted."""
    left = set(keys)
    for row in read_container(path, source):
        if row["key"] in left:
            left.remove(row["key"])
            yield row
        if not left:
            return


def _of_dataset(path: str, keys: set[str], source: SourceConfig) -> Iterator[Row]:
    """Reads the keys, and then the row groups that hold such a row."""
    fs, inner = storage.filesystem(path)
    with pq.ParquetFile(inner, filesystem=fs) as file:
        for group in range(file.num_row_groups):
            names = file.read_row_group(group, columns=["key"])["key"].to_pylist()
            if not keys.intersection(names):
                continue
            table = file.read_row_group(group, columns=["key", "url", "image"])
            for stored in table.to_pylist():
                if stored["key"] in keys:
                    yield new_row(stored["url"], source) | {
                        "key": stored["key"],
                        "data": stored["image"],
                    }
