"""Draws a few rows from all over a source, without reading it all, and estimates how many it has.
What `estimate` probes; lists in plain CSV, TSV, JSON Lines or Parquet are read at random places."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from random import Random
from typing import Any

import pyarrow as pa

from pipelines.data.config import SourceConfig
from pipelines.data.sources import embedded, paths
from pipelines.data.sources.columns import LeftOut, choose_columns
from pipelines.data.sources.datasets import count_rows, read_part
from pipelines.data.sources.delimited import parse_delimited
from pipelines.data.sources.detect import CONTAINERS, detect_kind, source_files
from pipelines.data.sources.dialect import Form, find_form, read_cells
from pipelines.data.sources.encodings import UTF8
from pipelines.data.sources.folder import count_images, read_folder
from pipelines.data.sources.json_arrays import parse_array
from pipelines.data.sources.jsonl import look_at_lines, parse_jsonl
from pipelines.data.sources.lists import list_form, read_list
from pipelines.data.sources.parquet import open_parquet, parse_parquet
from pipelines.data.sources.places import is_web, open_random
from pipelines.data.sources.raw import RAW_SCHEMA
from pipelines.data.sources.records import cut_records
from pipelines.data.sources.rows import parse_rows
from pipelines.data.sources.tars import read_tar

MIN_PLACES = 16
ROWS_PER_PLACE = 64
MAX_CONTAINERS = 16
FROM_START = "from its start"
BLOCK_BYTES = 2**20
SMALL_BYTES = 8 * 2**20
# What a tar holds for a sample beside its image: headers, padding, captions.
TAR_OVERHEAD_BYTES = 4096


def sample_rows(
    source: SourceConfig, n: int, seed: int, extra_columns: Sequence[str] = ()
) -> tuple[list[dict[str, Any]], float]:
    """About `n` row dictionaries of a source, and about how many rows it has.

    Compressed lists, JSON arrays and folders give their first rows.

    Raises:
        DataError: as `check_source`.
    """
    kind, random = detect_kind(source), Random(seed)
    if kind in CONTAINERS:
        return _from_containers(source, kind, n, random, extra_columns)
    if kind == "folder":
        tables, total = (
            [_first(read_folder(source, extra_columns, LeftOut()), n)],
            float(count_images(source)),
        )
    else:
        tables, total = _from_lists(source, kind, n, random, extra_columns)
    table = pa.concat_tables(tables)
    if table.num_rows > n:
        table = table.take(sorted(random.sample(range(table.num_rows), n)))
    return parse_rows(table, source), total


def _from_containers(
    source: SourceConfig, kind: str, n: int, random: Random, extra: Sequence[str]
) -> tuple[list[dict[str, Any]], float]:
    files = source_files(source)
    chosen = random.sample(files, min(len(files), MAX_CONTAINERS))
    share = -(-n // len(chosen))
    rows: list[dict[str, Any]] = []
    read_bytes = 0
    for file in chosen:
        if kind == "dataset":
            reader = read_part(file.path, source)
        elif kind == "embedded":
            reader = embedded.read_embedded(file.path, source, extra, LeftOut())
        else:
            reader = read_tar(file.path, source, extra, LeftOut())
        taken = list(islice(reader, share))
        is_whole = len(taken) < share
        read_bytes += file.bytes if is_whole else sum(_tar_bytes(row) for row in taken)
        rows += taken
    if kind == "dataset":
        return rows, float(count_rows(source))
    if kind == "embedded":
        return rows, float(sum(embedded.count_rows(file.path) for file in files))
    return rows, len(rows) * sum(file.bytes for file in files) / max(read_bytes, 1)


def _from_lists(
    source: SourceConfig, kind: str, n: int, random: Random, extra: Sequence[str]
) -> tuple[list[pa.Table], float]:
    """Tables of rows from blocks that are drawn from those of all files."""
    files = source_files(source)
    all_bytes = sum(file.bytes for file in files)
    if all_bytes <= SMALL_BYTES:
        tables = [
            table
            for file in files
            for table in read_list(file.path, source, kind, extra, LeftOut())
        ]
        return tables, float(sum(table.num_rows for table in tables))
    blocks = [(file, number) for file in files for number in range(-(-file.bytes // BLOCK_BYTES))]
    draws = min(max(MIN_PLACES, n // ROWS_PER_PLACE), len(blocks))
    forms = {file.path: _form(file.path, source, kind) for file in files}
    places = Counter(
        _place(file, number, forms[file.path]) for file, number in random.sample(blocks, draws)
    )
    tables = [RAW_SCHEMA.empty_table()]
    read_bytes, read_rows = 0.0, 0
    for (file, number), times in places.items():
        share = -(-n * times // draws)
        form = forms[file.path]
        if form == FROM_START:
            table, size = _first_of_file(file, source, kind, share, extra)
        elif form == "parquet":
            table, size = _of_row_group(file, source, number, share, extra)
        else:
            table, size = _of_block(file, source, kind, number * BLOCK_BYTES, extra)
        read_bytes, read_rows = read_bytes + size, read_rows + table.num_rows
        if table.num_rows > share:
            table = table.take(sorted(random.sample(range(table.num_rows), share)))
        tables.append(table)
    return tables, read_rows * all_bytes / max(read_bytes, 1.0)


def _place(file: paths.File, block: int, form: str) -> tuple[paths.File, int]:
    """What is read of a file for one of its blocks: its start, a row group, or that block."""
    if form == FROM_START:
        return file, 0
    if form == "parquet":
        with open_parquet(file.path) as parquet:
            return file, block * parquet.num_row_groups // -(-file.bytes // BLOCK_BYTES)
    return file, block


def _form(path: str, source: SourceConfig, kind: str) -> str:
    """What a list file is, or FROM_START if it cannot be entered in its middle."""
    form = "array" if kind == "sharegpt4v" else list_form(path, source)
    if form != "parquet" and (is_web(path) or paths.codec(path) is not None):
        return FROM_START
    encoding = UTF8
    if form == "lines":
        encoding = look_at_lines(path, source).encoding
    elif form == "delimited":
        encoding = find_form(path, source, kind).encoding
    return FROM_START if form == "array" or encoding != UTF8 else form


def _of_row_group(
    file: paths.File, source: SourceConfig, group: int, n: int, extra: Sequence[str]
) -> tuple[pa.Table, float]:
    """The first rows of a row group, and what share of the file's bytes they are."""
    with open_parquet(file.path) as parquet:
        rows = max(parquet.metadata.num_rows, 1)
        groups = [group] if parquet.num_row_groups else []
        table = _first(parse_parquet(parquet, file.path, source, extra, LeftOut(), groups), n)
        return table, table.num_rows * file.bytes / rows


def _of_block(
    file: paths.File, source: SourceConfig, kind: str, offset: int, extra: Sequence[str]
) -> tuple[pa.Table, float]:
    """The rows that are wholly inside of a block of bytes, and how many bytes they are."""
    with paths.reading(file.path), open_random(file.path) as stream:
        stream.seek(offset)
        block = stream.read(BLOCK_BYTES)
    at_end = offset + len(block) >= file.bytes
    return _parse_block(block, file.path, source, kind, extra, offset == 0, at_end)


def _parse_block(
    block: bytes,
    path: str,
    source: SourceConfig,
    kind: str,
    extra: Sequence[str],
    at_start: bool,
    at_end: bool,
) -> tuple[pa.Table, float]:
    if list_form(path, source) == "lines":
        start = 0 if at_start else block.find(b"\n") + 1
        block = block[start:] if at_end else block[start : block.rfind(b"\n") + 1]
        lines = look_at_lines(path, source)
        tables = parse_jsonl(pa.BufferReader(block), path, source, lines, extra, LeftOut())
    else:
        form = find_form(path, source, kind)
        start = 0 if at_start else _row_start(block, form, source, path)
        if not at_end:
            block = block[: start + cut_records(block[start:], form.dialect, False).used]
        block = block[start:]
        skip = form.body if at_start else 0
        stream = pa.BufferReader(block)
        tables = parse_delimited(stream, path, source, form, extra, LeftOut(), skip)
    rows = list(tables) if block else []
    return pa.concat_tables([RAW_SCHEMA.empty_table(), *rows]), float(len(block))


def _row_start(block: bytes, form: Form, source: SourceConfig, path: str) -> int:
    """Where the first row that is wholly inside of a block starts."""
    url = form.names.index(choose_columns(source, path, form.names, ()).url)
    for line in re.finditer(rb"\r?\n", block):
        rest = block[line.end() :]
        cells, following = islice(chain(read_cells(rest, form.dialect, False), ([], [])), 2)
        is_row = len(cells) == len(following) == len(form.names)
        if is_row and not re.search(r"\s", cells[url].strip()):
            first = rest.partition(b"\n")[0]
            # Not the end of a quoted cell with a line break in it.
            if form.dialect.quoting == "none" or first.count(b'"') % 2 == 0 or b'"' in first[:1]:
                return line.end()
    return 0


def _first_of_file(
    file: paths.File, source: SourceConfig, kind: str, n: int, extra: Sequence[str]
) -> tuple[pa.Table, float]:
    """The first rows of a file that cannot be entered in its middle, and how many of the file's
    bytes they are."""
    path = file.path
    with paths.open_packed(path) as (packed, codec):
        stream = packed if codec is None else paths.unpacked(packed, codec, path)
        if kind == "sharegpt4v" or list_form(path, source) == "array":
            tables = parse_array(stream, path, source, extra, LeftOut())
            return _first(tables, n), float(packed.tell())
        block = stream.read(BLOCK_BYTES)
        table, used = _parse_block(block, path, source, kind, extra, True, len(block) < BLOCK_BYTES)
        return table, used / max(len(block), 1) * packed.tell()


def _first(tables: Iterator[pa.Table], n: int) -> pa.Table:
    """At least `n` rows, if there are so many."""
    taken = [RAW_SCHEMA.empty_table()]
    for table in tables:
        taken.append(table)
        if sum(one.num_rows for one in taken) >= n:
            break
    return pa.concat_tables(taken)


def _tar_bytes(row: dict[str, Any]) -> int:
    return len(row["data"] or b"") + TAR_OVERHEAD_BYTES
