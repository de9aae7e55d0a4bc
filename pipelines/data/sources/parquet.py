"""Reads Parquet lists in small batches, the needed columns only.
One of the readers of lists; columns of every type that may hold texts become texts here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from caft.errors import DataError
from pipelines.data.config import SourceConfig
from pipelines.data.sources import paths
from pipelines.data.sources.cells import SPEAKER_FIELDS, TEXT_FIELDS
from pipelines.data.sources.columns import Columns, LeftOut, choose_columns
from pipelines.data.sources.places import open_random
from pipelines.data.sources.raw import TEXTS, caption_cells, to_raw, with_complaints

BATCH_ROWS = 8192
# Column chunks are read piecewise: one may be gigabytes.
BUFFER_BYTES = 2**20
RECORD = frozenset(("url", "key", "status", "error_message"))
NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"


def read_parquet(
    path: str, source: SourceConfig, extra: Sequence[str], left_out: LeftOut
) -> Iterator[pa.Table]:
    """Stream a list as tables of RAW_SCHEMA.

    Raises:
        DataError: corrupt Parquet, a column that is not there or holds something else.
    """
    with open_parquet(path) as file:
        yield from parse_parquet(file, path, source, extra, left_out)


def parse_parquet(
    file: pq.ParquetFile,
    path: str,
    source: SourceConfig,
    extra: Sequence[str],
    left_out: LeftOut,
    row_groups: list[int] | None = None,
) -> Iterator[pa.Table]:
    """Tables of RAW_SCHEMA of some row groups, or of all."""
    schema = file.schema_arrow
    partitions = {k: v for k, v in partitions_of(path).items() if k not in schema.names}
    columns = choose_columns(source, path, [*schema.names, *partitions], extra)
    require_types(path, schema, columns)
    for name in left_out.add(schema.names, columns):
        left_out.count(name, held_rows(file, name))
    stored = [name for name in columns.names if name in schema.names]
    root = source.image_root or paths.parent(path)
    for batch in file.iter_batches(BATCH_ROWS, row_groups=row_groups, columns=stored):
        table, complaints = as_texts(pa.Table.from_batches([batch]), columns)
        for name in columns.names:
            if name in partitions:
                value = pa.scalar(partitions[name], pa.string())
                table = table.append_column(name, pa.repeat(value, len(table)))
        yield with_complaints(to_raw(table, columns, root, path), complaints)


@contextmanager
def open_parquet(path: str) -> Iterator[pq.ParquetFile]:
    with (
        paths.reading(path, "corrupt Parquet"),
        open_random(path) as stream,
        pq.ParquetFile(stream, buffer_size=BUFFER_BYTES, pre_buffer=False) as file,
    ):
        yield file


def is_record(path: str) -> bool:
    """Whether a Parquet file is img2dataset's: each URL with what became of it."""
    with open_parquet(path) as file:
        return RECORD.issubset(file.schema_arrow.names)


def partitions_of(path: str) -> dict[str, str | None]:
    """Columns that the names of Hive's folders hold: `.../lang=en/part-0.parquet`."""
    found = re.findall(r"(?<=/)([^/=]+)=([^/]*)(?=/)", path)
    return {unquote(k): None if v == NO_PARTITION else unquote(v) for k, v in found}


def require_types(path: str, schema: pa.Schema, columns: Columns) -> None:
    """Refuse columns that can hold no URL or no text.

    Raises:
        DataError: names the column and its type.
    """
    if columns.url in schema.names:
        urls = _plain_type(schema.field(columns.url).type)
        if pa.types.is_nested(urls) or pa.types.is_binary(urls):
            raise DataError(
                f"{path}: column '{columns.url}' holds {urls}, URLs are due; "
                "name the right one in url_column"
            )
    for name in columns.captions:
        if name in schema.names and not _may_hold_texts(schema.field(name).type):
            raise DataError(
                f"{path}: column '{name}' holds {schema.field(name).type}, texts are due; name "
                "the right ones in caption_columns"
            )


def as_texts(table: pa.Table, columns: Columns) -> tuple[pa.Table, list[str | None]]:
    """The used columns with captions as string or list<string>, and for each row what its caption
    columns hold that is no text."""
    complaints: list[str | None] = [None] * len(table)
    for name in columns.names:
        if name not in table.column_names:
            continue
        array = _plain(table[name].combine_chunks())
        if name in columns.captions and not _is_simple(array.type):
            array = caption_cells(array.to_pylist(), name, complaints)
        table = table.set_column(table.column_names.index(name), name, array)
    return table, complaints


def _plain(array: pa.Array) -> pa.Array:
    """An array without dictionaries, views and large offsets; strings are valid UTF-8."""
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    plain = _plain_type(array.type)
    if pa.types.is_string(plain):
        return _valid(array.cast(plain))
    if plain == TEXTS and array.type != plain:
        try:
            array = array.cast(plain)
        except pa.ArrowException:
            return pa.array(array.to_pylist(), plain)
    if plain == TEXTS:
        values = _valid(array.values)
        return pa.ListArray.from_arrays(array.offsets, values, mask=_mask(array))
    return array


def _mask(array: pa.ListArray) -> pa.Array | None:
    return array.is_null() if array.null_count else None


def _valid(texts: pa.Array) -> pa.Array:
    """Strings of a file that may hold any bytes; those that are no UTF-8 get U+FFFD."""
    try:
        texts.validate(full=True)
    except (pa.ArrowInvalid, UnicodeDecodeError):
        values = texts.cast(pa.binary()).to_pylist()
        repaired = [None if v is None else v.decode("utf-8", "replace") for v in values]
        return pa.array(repaired, pa.string())
    return texts


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return pa.binary()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if _is_list(kind) and pa.types.is_string(_plain_type(kind.value_type)):
        return TEXTS
    return kind


def _is_list(kind: pa.DataType) -> bool:
    tests = ("list", "large_list", "fixed_size_list", "list_view", "large_list_view")
    return any(getattr(pa.types, f"is_{test}")(kind) for test in tests)


def _is_simple(kind: pa.DataType) -> bool:
    """Whether Arrow's kernels make texts of a caption column."""
    return pa.types.is_string(kind) or kind == TEXTS or pa.types.is_primitive(kind)


def _may_hold_texts(kind: pa.DataType) -> bool:
    kind = _plain_type(kind)
    if pa.types.is_map(kind) or pa.types.is_union(kind):
        return False
    if _is_list(kind):
        return _may_hold_texts(kind.value_type)
    if pa.types.is_struct(kind):
        names = {kind.field(n).name for n in range(kind.num_fields)}
        return bool(names.intersection((*TEXT_FIELDS, *SPEAKER_FIELDS)))
    return True


def held_rows(file: pq.ParquetFile, name: str) -> int:
    """Rows that hold something in a column, by the file's statistics where it has them."""
    metadata = file.metadata
    index = next(
        (n for n in range(metadata.num_columns) if metadata.schema.column(n).path == name), None
    )
    rows = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        known = group.column(index).statistics if index is not None else None
        rows += group.num_rows - (known.null_count or 0 if known is not None else 0)
    return rows
