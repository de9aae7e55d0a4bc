"""Reads CSV and TSV lists block by block: with a header, or in the layouts of CC3M and CC12M.
One of the readers of lists; lines that do not fit the list are counted as rows of their own."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import pyarrow as pa
import pyarrow.csv as pacsv

from caft.errors import DataError
from pipelines.data.config import SourceConfig
from pipelines.data.sources import paths
from pipelines.data.sources.columns import choose_columns
from pipelines.data.sources.quoting import QuoteCheck
from pipelines.data.sources.raw import HTTP, bad_rows, to_raw

# The parser reads 32 of them ahead.
BLOCK_BYTES = 2 * 2**20
HEADERLESS = {"cc3m": ["caption", "url"], "cc12m": ["url", "caption"]}


@dataclass(frozen=True)
class Layout:
    """How a delimited list is written."""

    names: list[str]
    delimiter: str
    quote: str | Literal[False]
    header: bool


def layout_of(path: str, kind: str) -> Layout:
    """Look at a list's first line.

    Raises:
        DataError: the file is empty or has no header.
    """
    delimiter = "\t" if paths.suffix(path) == ".tsv" else ","
    if kind in HEADERLESS:
        paths.head(path, 1)
        # Published without quoting: a quotation mark is part of a caption.
        return Layout(HEADERLESS[kind], "\t", False, header=False)
    layout = Layout([], delimiter, '"', header=True)
    names = next(read_cells(paths.head(path), layout), [])
    if any(re.match(HTTP, name) for name in names):
        raise DataError(
            f"{path}: no header: the first line has a URL; add a line with the columns' names, or "
            "name its kind, cc3m or cc12m"
        )
    return replace(layout, names=names)


def headerless_kind(path: str) -> Literal["cc3m", "cc12m"] | None:
    """cc3m or cc12m for a TSV of two columns of which one holds a URL in the first line."""
    layout = Layout([], "\t", False, header=False)
    cells = next(read_cells(paths.head(path), layout), [])
    match [re.match(HTTP, cell) is not None for cell in cells]:
        case [False, True]:
            return "cc3m"
        case [True, False]:
            return "cc12m"
    return None


def read_cells(data: bytes, layout: Layout) -> Iterator[list[str]]:
    """The rows in a few bytes of a list, up to one that cannot be read; the last may be cut."""
    text = io.StringIO(data.decode("utf-8-sig", "replace"), newline="")
    csv.field_size_limit(BLOCK_BYTES)
    try:
        if layout.quote is False:
            yield from csv.reader(text, delimiter=layout.delimiter, quoting=csv.QUOTE_NONE)
        else:
            yield from csv.reader(text, delimiter=layout.delimiter)
    except csv.Error:
        return


def read_delimited(
    path: str, source: SourceConfig, kind: str, extra: Sequence[str]
) -> Iterator[pa.Table]:
    """Stream a list as tables of RAW_SCHEMA.

    Raises:
        DataError: a column that is not there, or a quote that swallows the rest of the file.
    """
    layout = layout_of(path, kind)
    choose_columns(source, path, layout.names, extra)
    with paths.open_stream(path) as stream:
        yield from parse_delimited(stream, path, source, layout, extra)


def parse_delimited(
    stream: pa.NativeFile,
    path: str,
    source: SourceConfig,
    layout: Layout,
    extra: Sequence[str],
) -> Iterator[pa.Table]:
    """Tables of RAW_SCHEMA of a stream that starts at a row, or at the header if it has one."""
    columns = choose_columns(source, path, layout.names, extra)
    root = source.image_root or paths.parent(path)
    quotes = QuoteCheck(path, layout.delimiter, layout.header, layout.names.index(columns.url))
    for batch in _batches(stream, layout, quotes):
        fine, swallowed = quotes.split(pa.Table.from_batches([batch]))
        bad = quotes.take_invalid() + swallowed
        if fine.num_rows:
            yield to_raw(fine, columns, root, path)
        if bad:
            yield bad_rows(bad)
    bad = quotes.take_invalid()
    quotes.check_end()
    if bad:
        yield bad_rows(bad)


class _Repair:
    """Replaces bytes that are no UTF-8, of which a list may hold some, and the parser none."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def __call__(self, data: pa.Buffer) -> bytes:
        return self._decoder.decode(memoryview(data)).encode()


def _batches(stream: pa.NativeFile, layout: Layout, quotes: QuoteCheck) -> Iterator[pa.RecordBatch]:
    try:
        yield from pacsv.open_csv(
            pa.TransformInputStream(stream, _Repair()),
            # One thread: bad lines then arrive with their block, the same on every run.
            read_options=pacsv.ReadOptions(
                block_size=BLOCK_BYTES,
                use_threads=False,
                column_names=None if layout.header else layout.names,
            ),
            parse_options=pacsv.ParseOptions(
                delimiter=layout.delimiter,
                quote_char=layout.quote,
                newlines_in_values=layout.quote is not False,
                invalid_row_handler=quotes.note_invalid,
            ),
            convert_options=pacsv.ConvertOptions(
                # All of the columns, because a quote may be broken in any.
                column_types={name: pa.string() for name in layout.names},
                strings_can_be_null=False,
                check_utf8=False,
            ),
        )
    except pa.ArrowInvalid as error:
        if "straddling" not in str(error):
            raise
        raise quotes.unclosed(f"for more than {BLOCK_BYTES // 2**20} MiB") from None
