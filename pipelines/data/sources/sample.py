"""Draws a few rows from all over a source, without reading it all, and estimates how many it has.
What `estimate` probes; lists in plain CSV, TSV, JSON Lines or Parquet are read at random places."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from random import Random
from typing import Any

import pyarrow as pa

from pipelines import storage
from pipelines.data.config import SourceConfig
from pipelines.data.sources import paths
from pipelines.data.sources.columns import choose_columns
from pipelines.data.sources.datasets import count_rows, read_part
from pipelines.data.sources.delimited import Layout, layout_of, parse_delimited, read_cells
from pipelines.data.sources.detect import detect_kind, source_files
from pipelines.data.sources.folder import count_images, read_folder
from pipelines.data.sources.jsonl import field_types, parse_jsonl
from pipelines.data.sources.parquet import open_parquet, parse_parquet
from pipelines.data.sources.rows import parse_rows
from pipelines.data.sources.sharegpt4v import parse_sharegpt4v
from pipelines.data.sources.tars import read_tar

MIN_PLACES = 16
ROWS_PER_PLACE = 64
MAX_CONTAINERS = 16
BLOCK_BYTES = 2**20
# What a tar holds for a sample beside its image: headers, padding, captions.
TAR_OVERHEAD_BYTES = 4096


def sample_rows(source: SourceConfig, n: int, seed: int) -> tuple[list[dict[str, Any]], float]:
    """About `n` row dictionaries of a source, and about how many rows it has.

    Compressed lists, JSON arrays and folders give their first rows.

    Raises:
        DataError: as `check_source`.
    """
    kind, random = detect_kind(source), Random(seed)
    if kind in ("webdataset", "dataset"):
        return _from_containers(source, kind, n, random)
    if kind == "folder":
        tables, total = _first(read_folder(source, ()), n), float(count_images(source))
    else:
        tables, total = _from_lists(source, kind, n, random)
    table = pa.concat_tables(tables)
    if table.num_rows > n:
        table = table.take(sorted(random.sample(range(table.num_rows), n)))
    return parse_rows(table, source), total


def _from_containers(
    source: SourceConfig, kind: str, n: int, random: Random
) -> tuple[list[dict[str, Any]], float]:
    files = source_files(source)
    chosen = random.sample(files, min(len(files), MAX_CONTAINERS))
    share = -(-n // len(chosen))
    rows: list[dict[str, Any]] = []
    read_bytes = 0
    for file in chosen:
        reader = (
            read_part(file.path, source) if kind == "dataset" else read_tar(file.path, source, ())
        )
        taken = list(islice(reader, share))
        is_whole = len(taken) < share
        read_bytes += file.bytes if is_whole else sum(_tar_bytes(row) for row in taken)
        rows += taken
    if kind == "dataset":
        return rows, float(count_rows(source))
    return rows, len(rows) * sum(file.bytes for file in files) / max(read_bytes, 1)


def _from_lists(
    source: SourceConfig, kind: str, n: int, random: Random
) -> tuple[list[pa.Table], float]:
    """Tables of rows from places that are drawn by bytes over all files."""
    files = source_files(source)
    all_bytes = sum(file.bytes for file in files)
    places = max(MIN_PLACES, n // ROWS_PER_PLACE)
    share = -(-n // places)
    tables: list[pa.Table] = []
    read_bytes = 0.0
    read_rows = 0
    firsts = set()
    for file in random.choices(files, [file.bytes for file in files], k=places):
        if _is_seekable(file, kind):
            found, size = _at_random_place(file, source, kind, random)
        elif file.path not in firsts:
            firsts.add(file.path)
            found, size = _first_of_file(file, source, kind, -(-n // len(files)))
        else:
            continue
        rows = sum(table.num_rows for table in found)
        read_bytes, read_rows = read_bytes + size, read_rows + rows
        if rows > share and _is_seekable(file, kind):
            table = pa.concat_tables(found)
            found = [table.take(sorted(random.sample(range(rows), share)))]
        tables += found
    return tables, read_rows * all_bytes / max(read_bytes, 1.0)


def _is_seekable(file: paths.File, kind: str) -> bool:
    return kind != "sharegpt4v" and not paths.is_compressed(file.path)


def _at_random_place(
    file: paths.File, source: SourceConfig, kind: str, random: Random
) -> tuple[list[pa.Table], float]:
    """Rows somewhere in a file, and how many of its bytes hold them."""
    path, ending = file.path, paths.suffix(file.path)
    if ending == ".parquet":
        with open_parquet(path) as parquet:
            group = random.randrange(max(parquet.num_row_groups, 1))
            tables = _first(parse_parquet(parquet, path, source, (), [group]), 1)
            rows = sum(table.num_rows for table in tables)
            return tables, rows * file.bytes / max(parquet.metadata.num_rows, 1)
    offset = random.randrange(max(file.bytes - BLOCK_BYTES, 1))
    fs, inner = storage.filesystem(path)
    with paths.reading(path), fs.open_input_file(inner) as stream:
        stream.seek(offset)
        block = stream.read(BLOCK_BYTES)
    at_end = offset + len(block) >= file.bytes
    if ending in (".jsonl", ".ndjson", ".json"):
        start = block.find(b"\n") + 1 if offset else 0
        end = len(block) if at_end else block.rfind(b"\n") + 1
        block = block[start:end]
        tables = list(parse_jsonl(pa.BufferReader(block), path, source, field_types(path), ()))
        return tables, float(len(block))
    layout = layout_of(path, kind)
    header = layout.header and offset == 0
    start = 0 if offset == 0 else _row_start(block, layout, source, path, from_end=False)
    end = len(block) if at_end else _row_start(block, layout, source, path, from_end=True)
    block = block[start:end]
    inside = Layout(layout.names, layout.delimiter, layout.quote, header)
    tables = (
        list(parse_delimited(pa.BufferReader(block), path, source, inside, ())) if block else []
    )
    return tables, float(len(block))


def _row_start(
    block: bytes, layout: Layout, source: SourceConfig, path: str, from_end: bool
) -> int:
    """Where the first, or the last, row that is wholly inside of a block starts."""
    url = layout.names.index(choose_columns(source, path, layout.names, ()).url)
    starts = [match.end() for match in re.finditer(rb"\r?\n", block)]
    for start in reversed(starts) if from_end else starts:
        rows = read_cells(block[start:], layout)
        cells, following = next(rows, []), next(rows, None)
        if len(cells) != len(layout.names) or re.search(r"\s", cells[url].strip()):
            continue
        # The last row of a block may be cut off.
        if following is not None:
            return start
    return len(block) if from_end else 0


def _first_of_file(
    file: paths.File, source: SourceConfig, kind: str, n: int
) -> tuple[list[pa.Table], float]:
    """The first rows of a file that cannot be entered in its middle."""
    path, ending = file.path, paths.suffix(file.path)
    fs, inner = storage.filesystem(path)
    with (
        paths.reading(path),
        fs.open_input_stream(inner, compression=None) as packed,
        pa.CompressedInputStream(packed, _codec(path))
        if paths.is_compressed(path)
        else packed as stream,
    ):
        if kind == "sharegpt4v":
            reader = parse_sharegpt4v(stream, path, source, ())
        elif ending in (".jsonl", ".ndjson", ".json"):
            reader = parse_jsonl(stream, path, source, field_types(path), ())
        else:
            reader = parse_delimited(stream, path, source, layout_of(path, kind), ())
        return _first(reader, n), float(packed.tell())


def _first(tables: Iterator[pa.Table], n: int) -> list[pa.Table]:
    """Tables until they have `n` rows."""
    taken: list[pa.Table] = []
    for table in tables:
        taken.append(table)
        if sum(len(one) for one in taken) >= n:
            break
    return taken


def _codec(path: str) -> str:
    return {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}[path[path.rfind(".") :].lower()]


def _tar_bytes(row: dict[str, Any]) -> int:
    return len(row["data"] or b"") + TAR_OVERHEAD_BYTES
