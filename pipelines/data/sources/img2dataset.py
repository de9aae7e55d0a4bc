"""Reads what img2dataset notes of each URL in the Parquet beside its tars and folders.
What it failed to fetch is a rejected row of the source, which a retry can fetch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.data.config import SourceConfig
from pipelines.data.sources import paths
from pipelines.data.sources.columns import Columns, caption_kinds
from pipelines.data.sources.detect import detect_kind, source_files
from pipelines.data.sources.parquet import as_texts, is_record, open_parquet
from pipelines.data.sources.raw import RAW_SCHEMA, to_raw

BATCH_ROWS = 8192
SUCCESS = "success"
# What its messages are called here; the first that is found in one counts.
MESSAGES = (
    (re.compile(r"HTTP Error 429"), "http_429"),
    (re.compile(r"HTTP Error 4\d\d"), "http_4xx"),
    (re.compile(r"HTTP Error 5\d\d"), "http_5xx"),
    (re.compile(r"(?i)timed? ?out"), "timeout"),
    (re.compile(r"(?i)name or service|getaddrinfo|name resolution|nodename|no address"), "dns"),
    (re.compile(r"(?i)\bssl\b|certificate"), "tls"),
    (re.compile(r"(?i)x-robots-tag|disallowed"), "noai"),
    (re.compile(r"(?i)too small"), "too_small"),
    (re.compile(r"(?i)aspect ratio"), "aspect_ratio"),
    (re.compile(r"(?i)decod|not an image|cannot identify"), "not_an_image"),
)


def read_failed(source: SourceConfig, extra: Sequence[str]) -> Iterator[pa.Table]:
    """The rows that img2dataset did not fetch, as tables of RAW_SCHEMA with reason and detail."""
    for path in _records(source):
        with open_parquet(path) as file:
            names = file.schema_arrow.names
            captions = caption_kinds(source, names)
            columns = Columns("url", captions, tuple(n for n in extra if n in names))
            wanted = list(dict.fromkeys([*columns.names, "status", "error_message"]))
            for batch in file.iter_batches(BATCH_ROWS, columns=wanted):
                table = pa.Table.from_batches([batch])
                table = table.filter(pc.not_equal(pc.fill_null(table["status"], ""), SUCCESS))
                if len(table):
                    raw = to_raw(as_texts(table, columns)[0], columns, paths.parent(path), path)
                    yield _with_reasons(raw, table)


def _records(source: SourceConfig) -> list[str]:
    """The Parquet files that are img2dataset's notes on a source's files."""
    kind = detect_kind(source)
    if kind == "folder":
        found = [file.path for files in paths.walk(source.path) for file in files]
    elif kind == "embedded":
        found = [file.path for file in source_files(source)]
    elif kind == "webdataset":
        tars = [file.path for file in source_files(source)]
        beside = {tar[: -len(".tar")] + ".parquet" for tar in tars if tar.endswith(".tar")}
        folders = dict.fromkeys(map(paths.parent, tars))
        listed = [file.path for folder in folders for file in paths.list_folder(folder)[0]]
        found = [path for path in listed if path in beside]
    else:
        found = []
    return [path for path in found if paths.suffix(path) == ".parquet" and is_record(path)]


def _with_reasons(raw: pa.Table, table: pa.Table) -> pa.Table:
    reasons, details = [], []
    for known, status, message in zip(
        raw["reason"].to_pylist(),
        table["status"].to_pylist(),
        table["error_message"].to_pylist(),
        strict=True,
    ):
        text = message or ""
        named = (reason for pattern, reason in MESSAGES if pattern.search(text))
        other = "not_an_image" if status == "failed_to_resize" else "connection"
        reasons.append(known or next(named, other))
        details.append(f"img2dataset: {text or status or 'no status'}"[:300])
    columns = [raw["url"], raw["captions"], raw["columns"], pa.array(reasons), pa.array(details)]
    return pa.Table.from_arrays(columns, schema=RAW_SCHEMA)
