"""Reads CSV and TSV lists block by block, whatever their dialect, with Arrow's parser.
One of the readers of lists; lines that do not fit the list are counted as rows of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from pipelines.data.config import SourceConfig
from pipelines.data.sources import paths
from pipelines.data.sources.columns import LeftOut, choose_columns
from pipelines.data.sources.dialect import Form, find_form
from pipelines.data.sources.encodings import to_utf8
from pipelines.data.sources.raw import bad_rows, shorten, to_raw
from pipelines.data.sources.records import MAX_RECORD_BYTES, cut_records

BLOCK_BYTES = 2 * 2**20
MAX_DETAILS = 10_000  # of bad rows in one block that have their own


def read_delimited(
    path: str, source: SourceConfig, kind: str, extra: Sequence[str], left_out: LeftOut
) -> Iterator[pa.Table]:
    """Stream a list as tables of RAW_SCHEMA.

    Raises:
        DataError: as `find_form`, or a column that is not there.
    """
    form = find_form(path, source, kind)
    with paths.open_stream(path) as stream:
        yield from parse_delimited(stream, path, source, form, extra, left_out)


def parse_delimited(
    stream: pa.NativeFile,
    path: str,
    source: SourceConfig,
    form: Form,
    extra: Sequence[str],
    left_out: LeftOut,
    skip: int | None = None,
) -> Iterator[pa.Table]:
    """Tables of RAW_SCHEMA of an encoded stream.

    Args:
        skip: bytes before the first row, of the stream as UTF-8; None: what the form says.
    """
    columns = choose_columns(source, path, form.names, extra)
    missing = left_out.add(form.names, columns)
    used = [form.names.index(name) for name in [*columns.names, *missing]]
    root = source.image_root or paths.parent(path)
    text = to_utf8(stream, form.encoding, form.carriage_returns)
    row = int(form.header)
    for records, broken in _blocks(text, form, form.body if skip is None else skip):
        table, invalid = _parse(records, form, used, row)
        row += table.num_rows + len(invalid) + len(broken)
        table = table.rename_columns([*columns.names, *missing])
        for name in missing:
            left_out.count(name, pc.sum(pc.greater(pc.binary_length(table[name]), 0)).as_py() or 0)
        if table.num_rows:
            yield to_raw(table, columns, root, path)
        bad = [f"near row {row}: {why}: {_shown(line)}" for line, why in broken]
        if bad or invalid:
            yield bad_rows(invalid + bad)


def _blocks(
    stream: pa.NativeFile, form: Form, skip: int
) -> Iterator[tuple[bytes, list[tuple[bytes, str]]]]:
    """Whole records and broken lines, some megabytes at a time."""
    rest = stream.read(skip)[skip:]
    while True:
        data = stream.read(BLOCK_BYTES)
        block = rest + data
        cut = cut_records(block, form.dialect, at_end=not data)
        yield cut.records, cut.broken
        if not data:
            return
        rest = block[cut.used :]
        if len(rest) > MAX_RECORD_BYTES:
            yield b"", [(rest[:BLOCK_BYTES], f"longer than {MAX_RECORD_BYTES // 2**20} MiB")]
            rest = _next_line(stream, rest)


def _next_line(stream: pa.NativeFile, data: bytes) -> bytes:
    """What follows the next line break."""
    while (end := data.find(b"\n") + 1) == 0:
        data = stream.read(BLOCK_BYTES)
        if not data:
            return b""
    return data[end:]


def _parse(
    records: bytes, form: Form, used: Sequence[int], before: int
) -> tuple[pa.Table, list[str]]:
    """The used columns of the records that have as many cells as the list has columns, and a line
    about each of the others."""
    invalid: list[str] = []

    def note(row: pacsv.InvalidRow) -> str:
        if len(invalid) >= MAX_DETAILS:  # of millions of rows, one text
            invalid.append(invalid[-1])
            return "skip"
        counts = f"{row.actual_columns} columns, {row.expected_columns} are due"
        number = "" if row.number is None else f" {before + row.number}"
        invalid.append(f"row{number}: {counts}: {shorten(row.text)}")
        return "skip"

    # Names of a list may repeat or be empty.
    columns = [str(n) for n in range(len(form.names))]
    chosen = [str(n) for n in used]
    if not records.strip():
        return pa.table({name: pa.array([], pa.string()) for name in chosen}), invalid
    quoted = form.dialect.quoting != "none"
    table = pacsv.read_csv(
        pa.BufferReader(records),
        # One thread: bad lines then come in their order, the same on every run.
        read_options=pacsv.ReadOptions(
            block_size=len(records) + 1, use_threads=False, column_names=columns
        ),
        parse_options=pacsv.ParseOptions(
            delimiter=form.dialect.delimiter,
            quote_char='"' if quoted else False,
            escape_char="\\" if form.dialect.quoting == "escaped" else False,
            newlines_in_values=quoted,
            invalid_row_handler=note,
        ),
        convert_options=pacsv.ConvertOptions(
            include_columns=chosen,
            column_types={name: pa.string() for name in chosen},
            strings_can_be_null=False,
            check_utf8=False,
        ),
    )
    return table, invalid


def _shown(line: bytes) -> str:
    return shorten(line.decode("utf-8", "replace").rstrip("\r\n"))
