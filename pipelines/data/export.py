"""Writes a finished dataset as WebDataset tars, or as Parquet that Hugging Face's datasets loads.
Run as `python -m pipelines.data export PATH --to webdataset output=FOLDER`; runs again to go on."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from caft.captions import JOINER
from caft.errors import ConfigError, DataError, StorageError
from pipelines import storage, user_paths
from pipelines.data.dataset import CAPTIONS, MANIFEST, open_dataset
from pipelines.data.sources import DREAMLIP_CAPTION_COLUMNS
from pipelines.data.sources.raw import in_batches
from pipelines.data.write import read_table
from pipelines.identity import first_difference, require_same
from pipelines.workers import cluster_cpus, run_tasks

FORMS = ("webdataset", "huggingface")
CLAIM, SIZES = "export.json", "sizes.json"
ROW_GROUP = 128
SIDES = ("width", "height", "original_width", "original_height")
COLUMNS = ("key", "url", *SIDES, "sha256")
COLUMNS = ("key", "url", *SIDES, "sha256")
HUGGINGFACE = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("text", pa.string()),
        ("captions", CAPTIONS),
        *((name, pa.int32() if name in SIDES else pa.string()) for name in COLUMNS),
    ]
)
MARKS = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"RIFF": "webp"}


def export(path: str, to: str, overrides: Sequence[str]) -> dict[str, int]:
    """Write every row of a dataset, one file for each of its parts and splits.

    Of WebDataset a sample is `KEY.jpg` (or .png, .webp), `KEY.txt` with its first caption and
    `KEY.json` with all, each a list of sentences under its column's name. For Hugging Face a row
    has `image`, `text` and `captions`. Label maps stay here.

    Args:
        overrides: `output=FOLDER`.

    Returns:
        rows of each file, by its name below the output.

    Raises:
        ConfigError: no output, or one that holds something else.
        DataError: no finished dataset, or files that hold another number of rows than it.
    """
    path = user_paths.usable_path(path, "dataset").rstrip("/")
    output = _output(overrides)
    dataset = open_dataset(path)
    claim = storage.join(output, CLAIM)
    identity = {"to": to, "fingerprint": dataset.fingerprint}
    if storage.exists(claim):
        begun = storage.read_json(claim)
        require_same(output, "an export", first_difference(begun, identity, "export"))
    elif storage.exists(storage.join(output, MANIFEST)):
        raise ConfigError(f"output: {output} holds a dataset; give another folder")
    storage.write_json(claim, identity)
    if storage.exists(storage.join(output, SIZES)):
        return storage.read_json(storage.join(output, SIZES))
    receipts = storage.join(output, "receipts")
    parts = [storage.join(path, entry.name) for entry in dataset.files]
    tasks = cluster_cpus()

    def splits(n: int) -> list[str]:
        return sorted(set(read_table(parts[n], ["split"])["split"].to_pylist()))

    found = dict(run_tasks("export_splits", splits, range(len(parts)), tasks))
    items: list[list[Any]] = []
    numbers: Counter[str] = Counter()
    for n in range(len(parts)):
        for split in found[n]:
            items.append([n, split, numbers[split]])
            numbers[split] += 1

    def write(item: list[Any]) -> list[Any]:
        n, split, number = item
        name = file_name(to, split, number, numbers[split])
        receipt = storage.join(receipts, f"{split}-{number:05d}.json")
        if not storage.exists(receipt):
            rows = write_file(parts[n], split, storage.join(output, name), to)
            storage.write_json(receipt, rows)
        return [name, storage.read_json(receipt)]

    sizes = dict(sorted(result for _, result in run_tasks("export", write, items, tasks)))
    if sum(sizes.values()) != dataset.rows:
        raise DataError(
            f"{output}: holds {sum(sizes.values()):,} rows, {path} has {dataset.rows:,}; "
            "delete the folder and run again"
        )
    storage.write_json(storage.join(output, SIZES), sizes)
    storage.delete_folder(receipts)
    return sizes


def file_name(to: str, split: str, number: int, count: int) -> str:
    """`train-00000.tar`, or `data/train-00000-of-00002.parquet`."""
    if to == "webdataset":
        return f"{split}-{number:05d}.tar"
    return f"data/{split}-{number:05d}-of-{count:05d}.parquet"


def write_file(part: str, split: str, target: str, to: str) -> int:
    """Write the rows of one split of one part; returns their number."""
    write = _write_tar if to == "webdataset" else _write_parquet
    rows = 0

    def counted() -> Iterator[dict[str, Any]]:
        nonlocal rows
        for row in _rows(part, split):
            rows += 1
            yield row

    with storage.staged(target) as file:
        write(file, counted())
    return rows


def _write_tar(file: Path, rows: Iterator[dict[str, Any]]) -> None:
    with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as tar:
        for row in rows:
            text = _text(row)
            fields = {name: row[name] for name in COLUMNS} | {"caption": text} | _sentences(row)
            members = {
                image_ending(row["image"]): row["image"],
                "txt": text.encode(),
                "json": json.dumps(fields, ensure_ascii=False).encode(),
            }
            for ending, data in members.items():
                info = tarfile.TarInfo(f"{row['key']}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def _write_parquet(file: Path, rows: Iterator[dict[str, Any]]) -> None:
    features = json.dumps({"info": {"features": _features()}})
    schema = HUGGINGFACE.with_metadata({"huggingface": features})
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for batch in in_batches(rows, ROW_GROUP):
            for row in batch:
                name = f"{row['key']}.{image_ending(row['image'])}"
                row |= {"image": {"bytes": row["image"], "path": name}, "text": _text(row)}
            writer.write_table(pa.Table.from_pylist(batch, schema))


def _rows(part: str, split: str) -> Iterator[dict[str, Any]]:
    fs, inner = storage.filesystem(part)
    try:
        with fs.open_input_file(inner) as stream, pq.ParquetFile(stream) as file:
            columns = [*COLUMNS, "image", "captions", "split"]
            for batch in file.iter_batches(ROW_GROUP, columns=columns):
                yield from (row for row in batch.to_pylist() if row["split"] == split)
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"{part}: cannot be read: {error}") from None


def image_ending(image: bytes) -> str:
    """The ending of an encoded image's file, by its first bytes."""
    for mark, ending in MARKS.items():
        if image.startswith(mark):
            return ending
    with Image.open(io.BytesIO(image)) as picture:
        return (picture.format or "img").lower()


def _text(row: dict[str, Any]) -> str:
    return JOINER.join(row["captions"][0]["sentences"])


def _sentences(row: dict[str, Any]) -> dict[str, list[str]]:
    """Sentences of each caption by the name of its column, as DreamLIP's are called."""
    fields: dict[str, list[str]] = {}
    for caption in row["captions"]:
        listed = f"{caption['source']}_captions"
        name = listed if listed in DREAMLIP_CAPTION_COLUMNS else caption["source"]
        name = f"{name}_sentences" if name in (*COLUMNS, "caption") else name
        fields.setdefault(name, []).extend(caption["sentences"])
    return fields


def _features() -> dict[str, Any]:
    """What Hugging Face's datasets makes of each column."""

    def value(kind: pa.DataType) -> Any:
        if pa.types.is_list(kind):
            return [value(kind.value_type)]
        if pa.types.is_struct(kind):
            fields = [kind.field(n) for n in range(kind.num_fields)]
            return {field.name: value(field.type) for field in fields}
        return {"dtype": str(kind), "_type": "Value"}

    columns = {field.name: value(field.type) for field in HUGGINGFACE}
    return columns | {"image": {"_type": "Image"}}


def _output(overrides: Sequence[str]) -> str:
    for override in overrides:
        if not override.startswith("output="):
            raise ConfigError(f"{override}: an export takes output=FOLDER and no other key")
    if len(overrides) != 1:
        raise ConfigError("output: give the folder to write to, such as output=/data/tars")
    output = overrides[0].removeprefix("output=")
    return user_paths.usable_path(output, "output", folder=True).rstrip("/")
