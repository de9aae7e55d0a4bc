"""Labelled images as benchmarks of zero-shot classification: folders of classes, or Parquet.
ImageNet's layout and that of Hugging Face's Parquet files; class names come with them or apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from caft.errors import DataError
from pipelines import storage, user_paths
from pipelines.evaluate.benchmark import Benchmark, Classes, Rows, class_prompts
from pipelines.evaluate.config import LabelledConfig
from pipelines.evaluate.sets.base import broken, parse_json, read_text
from pipelines.evaluate.sets.files import ImageFiles
from pipelines.evaluation_input import Piece

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
PARQUET = ".parquet"


@dataclass(frozen=True)
class Found:
    """Labelled images: N of them, and C classes by the names their source uses."""

    rows: Rows
    pieces: tuple[Piece, ...]
    urls: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    facts: list[Any]  # that tell the images from others


def open_labelled(config: LabelledConfig, field: str) -> Benchmark:
    """Open a folder or Parquet of labelled images; `field` names it in messages.

    Raises:
        DataError: no labelled image, or class names that do not fit.
        ConfigError: a relative path inside a Ray job.
    """
    path = user_paths.usable_path(config.labelled, f"{field}.labelled").rstrip("/")
    whole = path.endswith(PARQUET)
    parts = [path] if whole else [storage.join(path, n) for n in storage.list_files(path, PARQUET)]
    found = _parquet(path, parts, config) if parts else _folders(path)
    if not found.urls:
        raise DataError(
            f"{path}: neither folders of images, one per class, nor Parquet files are in it; "
            f"correct {field}.labelled"
        )
    if config.count is not None and len(found.urls) != config.count:
        raise DataError(f"{path}: {len(found.urls):,} images, {field}.count is {config.count:,}")
    names = [name.replace("_", " ") for name in found.classes]
    if config.class_names is not None:
        file = user_paths.usable_path(config.class_names, f"{field}.class_names")
        names = _names(file, found.classes)
    facts = json.dumps([found.facts, found.labels, names])
    prompts = class_prompts(names, config.templates)
    return Benchmark(
        config.name,
        "",
        None,
        found.rows,
        found.pieces,
        found.urls,
        (),
        (),
        {},
        hashlib.sha256(facts.encode()).hexdigest(),
        preprocess=config.preprocess,
        classes=Classes(found.labels, prompts),
    )


def _folders(path: str) -> Found:
    images, labels, facts = [], [], []
    classes = storage.list_folders(path)
    for label, name in enumerate(classes):
        folder = storage.join(path, name)
        for file, size in sorted(storage.file_sizes(folder).items()):
            if file.lower().endswith(IMAGE_ENDINGS):
                images.append(storage.join(folder, file))
                labels.append(label)
                facts.append((f"{name}/{file}", size))
    rows = ImageFiles(path, tuple(images))
    return Found(rows, rows.pieces, rows.images, tuple(labels), tuple(classes), facts)


@dataclass(frozen=True)
class ParquetImages:
    """Images in a column of Parquet files, as bytes or as Hugging Face's struct of bytes."""

    place: str
    column: str

    def read(self, piece: Piece) -> list[dict[str, Any]]:
        """Raises DataError where the file has been damaged since it was opened."""
        cells = _column(piece.file, piece.row_group, self.column).to_pylist()
        images = [cell["bytes"] if isinstance(cell, dict) else cell for cell in cells]
        urls = _urls(piece.file, piece.row_group, len(images))
        return [{"url": url, "image": image} for url, image in zip(urls, images, strict=True)]


def _parquet(path: str, parts: Sequence[str], config: LabelledConfig) -> Found:
    pieces: list[Piece] = []
    urls: list[str] = []
    values: list[Any] = []
    facts: list[Any] = []
    known: Sequence[str] | None = None
    for part in parts:
        fs, inner = storage.filesystem(part)
        try:
            metadata = pq.read_metadata(inner, filesystem=fs)
        except (pa.ArrowException, OSError) as error:
            raise broken(part, f"not Parquet ({' '.join(str(error).split())})") from None
        names = metadata.schema.to_arrow_schema().names
        for column in (config.image_column, config.label_column):
            if column not in names:
                raise DataError(f"{part}: no column '{column}', there are {', '.join(names)}")
        known = known or _class_labels(metadata.metadata or {}, config.label_column)
        for group in range(metadata.num_row_groups):
            pieces.append(Piece(part, group, len(urls)))
            values += _column(part, group, config.label_column).to_pylist()
            urls += _urls(part, group, metadata.row_group(group).num_rows)
        facts.append((part.rpartition("/")[2], storage.size_bytes(part)))
    if all(isinstance(value, str) for value in values):
        known = sorted(set(values))
        place = {name: n for n, name in enumerate(known)}
        values = [place[value] for value in values]
    if not all(isinstance(value, int) and value >= 0 for value in values):
        raise DataError(f"{path}: column '{config.label_column}' holds neither indices nor names")
    count = max(values, default=-1) + 1
    if known is None and config.class_names is None:
        raise DataError(f"{path}: its labels are indices without names; set class_names")
    known = known or [str(n) for n in range(count)]
    if len(known) < count:
        raise DataError(f"{path}: label {count - 1} has no name among {len(known)}")
    rows = ParquetImages(path, config.image_column)
    return Found(rows, tuple(pieces), tuple(urls), tuple(values), tuple(known), facts)


def _column(file: str, row_group: int, column: str) -> pa.ChunkedArray:
    fs, inner = storage.filesystem(file)
    try:
        with pq.ParquetFile(inner, filesystem=fs) as opened:
            return opened.read_row_group(row_group, columns=[column])[column]
    except (pa.ArrowException, OSError) as error:
        raise broken(file, f"corrupt Parquet ({' '.join(str(error).split())})") from None


def _urls(file: str, row_group: int, count: int) -> list[str]:
    return [f"{file}#{row_group}.{n}" for n in range(count)]


def _class_labels(metadata: dict[bytes, bytes], column: str) -> list[str] | None:
    """Names that Hugging Face's `datasets` keeps in the file itself."""
    if b"huggingface" not in metadata:
        return None
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return [str(name) for name in names]


def _names(path: str, classes: Sequence[str]) -> list[str]:
    """Names of classes from a file: JSON by class, Keras's index of ImageNet, a JSON list, or text
    with a line for each class, ImageNet's `n01440764 tench, Tinca tinca` among them."""
    text = read_text(path)
    if path.endswith(".json"):
        content = parse_json(path, text)
        if isinstance(content, dict):
            names = {}
            for key, value in content.items():
                if isinstance(value, list) and len(value) == 2:
                    names[str(value[0])] = names[key] = value[1]
                else:
                    names[key] = value
            return _by_class(path, names, classes)
        if not isinstance(content, list):
            raise broken(path, "neither a list nor an object")
        lines = content
    else:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        synsets = [line.split(maxsplit=1) for line in lines]
        if all(len(pair) == 2 and pair[0] in classes for pair in synsets):
            return _by_class(path, {k: v.partition(",")[0] for k, v in synsets}, classes)
    if len(lines) != len(classes):
        raise DataError(f"{path}: {len(lines)} class names for {len(classes)} classes")
    return [str(line) for line in lines]


def _by_class(path: str, names: dict[str, Any], classes: Sequence[str]) -> list[str]:
    absent = [name for name in classes if name not in names]
    if absent:
        raise DataError(f"{path}: no name for {len(absent)} classes, first '{absent[0]}'")
    return [str(names[name]) for name in classes]
