"""Chooses the reader of one list file by its kind and its first bytes.
Stands between the entries of this package and the readers of lists."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import pyarrow as pa

from pipelines.data.config import SourceConfig
from pipelines.data.sources import paths
from pipelines.data.sources.columns import LeftOut
from pipelines.data.sources.delimited import read_delimited
from pipelines.data.sources.encodings import UTF8, head_as_utf8, marked
from pipelines.data.sources.json_arrays import array_kind, read_array
from pipelines.data.sources.jsonl import read_jsonl
from pipelines.data.sources.parquet import read_parquet

PARQUET_MARK = b"PAR1"
JSON_START = re.compile(rb'(?:\xef\xbb\xbf|\s)*(?:\{\s*["}]|\[\s*[\[{"\]])')
JSON = (".jsonl", ".ndjson", ".jsonlines", ".jsonline", ".json")


def read_list(
    path: str, source: SourceConfig, kind: str, extra: Sequence[str], left_out: LeftOut
) -> Iterator[pa.Table]:
    """Stream a list file as tables of RAW_SCHEMA; errors as the reader's."""
    form = "array" if kind == "sharegpt4v" else list_form(path, source)
    if form == "array":
        return read_array(path, source, extra, left_out)
    if form == "parquet":
        return read_parquet(path, source, extra, left_out)
    if form == "lines":
        return read_jsonl(path, source, extra, left_out)
    return read_delimited(path, source, kind, extra, left_out)


def list_form(path: str, source: SourceConfig) -> str:
    """`parquet`, `array`, `lines` or `delimited`, by the file's first bytes.

    Raises:
        DataError: the file is empty or cannot be read.
    """
    head = paths.head(path, 2**12)
    if head.startswith(PARQUET_MARK) or paths.suffix(path) == ".parquet":
        return "parquet"
    text = head_as_utf8(head, source.encoding or marked(head) or UTF8)
    if paths.suffix(path) not in JSON and not JSON_START.match(text):
        return "delimited"
    if array_kind(path, source) is not None:
        return "array"
    is_object = text.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{"
    return "lines" if is_object or paths.suffix(path) in JSON else "delimited"
