"""Chooses the reader of one list file by its kind and its name.
Stands between the entries of this package and the readers of lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from pipelines.data.config import SourceConfig
from pipelines.data.sources import paths
from pipelines.data.sources.delimited import read_delimited
from pipelines.data.sources.jsonl import read_jsonl
from pipelines.data.sources.parquet import read_parquet
from pipelines.data.sources.sharegpt4v import read_sharegpt4v

JSON_LINES = (".jsonl", ".ndjson", ".json")


def read_list(
    path: str, source: SourceConfig, kind: str, extra: Sequence[str]
) -> Iterator[pa.Table]:
    """Stream a list file as tables of RAW_SCHEMA; errors as the reader's."""
    if kind == "sharegpt4v":
        return read_sharegpt4v(path, source, extra)
    if paths.suffix(path) == ".parquet":
        return read_parquet(path, source, extra)
    if paths.suffix(path) in JSON_LINES:
        return read_jsonl(path, source, extra)
    return read_delimited(path, source, kind, extra)
