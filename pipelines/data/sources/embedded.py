"""Reads Parquet with the images in it: Hugging Face's columns of bytes and path, or plain bytes.
One of the readers of containers; a file is one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from caft.errors import DataError
from pipelines.data.config import SourceConfig
from pipelines.data.sources.columns import (
    Columns,
    LeftOut,
    caption_columns,
    caption_source,
    is_known_url,
)
from pipelines.data.sources.files import MAX_IMAGE_BYTES
from pipelines.data.sources.parquet import (
    RECORD,
    as_texts,
    held_rows,
    open_parquet,
    partitions_of,
    require_types,
)
from pipelines.data.sources.rows import new_row, set_texts

BATCH_ROWS = 64
# Names of columns of bytes that hold images, beside those of URL columns.
IMAGE_NAMES = (
    "jpg",
    "jpeg",
    "png",
    "webp",
    "image_bytes",
    "img_bytes",
    "image_data",
    "picture",
    "photo",
    "bytes",
    "binary",
)


def image_column(schema: pa.Schema, source: SourceConfig) -> str | None:
    """The column of a Parquet file that holds images; None: a list of URLs or paths."""
    if source.url_column is not None:
        names = [source.url_column] if source.url_column in schema.names else []
    else:
        names = [name for name in schema.names if schema.names.count(name) == 1]
    for name in names:
        kind = schema.field(name).type
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        if pa.types.is_struct(kind):
            fields = {kind.field(n).name: kind.field(n).type for n in range(kind.num_fields)}
            if "bytes" in fields and _is_binary(fields["bytes"]):
                return name
        known = is_known_url(name) or name.lower() in IMAGE_NAMES or name == source.url_column
        if _is_binary(kind) and known:
            return name
    return None


def read_embedded(
    path: str,
    source: SourceConfig,
    extra: Sequence[str],
    left_out: LeftOut,
    with_images: bool = True,
) -> Iterator[dict[str, Any]]:
    """Stream a file's rows, with their image if asked; the URL is `path::number`, from 0.

    Raises:
        DataError: corrupt Parquet, no column of images or of captions.
    """
    with open_parquet(path) as file:
        schema = file.schema_arrow
        image = image_column(schema, source)
        if image is None:
            raise DataError(f"{path}: no column of images; the first file of the source has one")
        others = [name for name in schema.names if name != image]
        captions = caption_columns(source, path, others)
        columns = Columns(image, captions, tuple(name for name in extra if name in others))
        require_types(path, schema.remove(schema.get_field_index(image)), columns)
        for name in left_out.add(others, columns):
            left_out.count(name, held_rows(file, name))
        partitions = partitions_of(path)
        number = 0
        wanted = [name for name in columns.names if with_images or name != image]
        is_record = RECORD.issubset(schema.names)  # rows that it did not fetch are read elsewhere
        wanted += ["status"] if is_record and "status" not in wanted else []
        for batch in file.iter_batches(BATCH_ROWS, columns=wanted):
            table = pa.Table.from_batches([batch])
            images: list[Any] = [None] * len(batch)
            if with_images:
                images = table[image].to_pylist()
                table = table.drop_columns([image])
            failed = [is_record and said != "success" for said in _column(table, "status")]
            texts, complaints = as_texts(table, columns)
            rows = texts.to_pylist() if texts.num_columns else [{}] * len(images)
            for n, cells in enumerate(rows):
                row = new_row(f"{path}::{number}", source)
                number += 1
                if failed[n]:
                    continue
                row["columns"] = {
                    name: _text(cells.get(name, partitions.get(name)))
                    for name in extra
                    if cells.get(name, partitions.get(name)) is not None
                }
                set_texts(
                    row,
                    [(caption_source(name), kind, cells[name]) for name, kind in captions.items()],
                    complaints[n],
                )
                yield _with_image(row, images[n])


def count_rows(path: str) -> int:
    with open_parquet(path) as file:
        return int(file.metadata.num_rows)


def _with_image(row: dict[str, Any], cell: Any) -> dict[str, Any]:
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if data is None:
        named = cell.get("path") if isinstance(cell, dict) else None
        detail = f"no bytes, only the path {named}" if named else "no image in this row"
        return row | {"reason": row["reason"] or "missing_file", "detail": row["detail"] or detail}
    if len(data) > MAX_IMAGE_BYTES:
        return row | {"reason": "too_large", "detail": f"{len(data)} bytes"}
    row["data"] = bytes(data)
    return row


def _is_binary(kind: pa.DataType) -> bool:
    return (
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    )


def _column(table: pa.Table, name: str) -> list[Any]:
    return table[name].to_pylist() if name in table.column_names else [None] * len(table)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
