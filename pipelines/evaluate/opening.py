"""Opens benchmarks: which images are scored, with which captions, on which regions.
First step of the evaluate stage; every complaint about its input is made here, before Ray."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from caft.captions import split_sentences
from caft.errors import DataError
from caft.masks import decode_rle
from pipelines import storage
from pipelines.data.dataset import Dataset, FileEntry, open_dataset
from pipelines.evaluate.benchmark import Benchmark, Measure, Piece, Region, Regions, class_prompts
from pipelines.evaluate.config import (
    AnyBenchmarkConfig,
    BenchmarkConfig,
    LabelledConfig,
    PublishedConfig,
)
from pipelines.evaluate.measures import RegionMeasure, SegmentationMeasure
from pipelines.evaluate.sets.files import ImageFiles
from pipelines.evaluate.sets.inventory import Present, take_inventory
from pipelines.evaluate.sets.labelled import open_labelled


@dataclass(frozen=True)
class DatasetRows:
    """Rows of one split of a dataset folder."""

    place: str
    split: str

    def read(self, piece: Piece) -> list[dict[str, Any]]:
        """Raises DataError where the file has been damaged since it was opened."""
        return read_piece(self.place, self.split, piece)


def open_benchmark(config: AnyBenchmarkConfig, field: str) -> Benchmark:
    """Open a benchmark with all that is needed to score it; `field` names it in messages.

    Raises:
        DataError: a dataset or published set that is missing, unfinished or damaged.
        ConfigError: a relative path inside a Ray job, or a set or split that is not known.
    """
    if isinstance(config, PublishedConfig):
        return open_published(config, field)
    if isinstance(config, LabelledConfig):
        return open_labelled(config, field)
    return open_split(config, field)


def open_split(config: BenchmarkConfig, field: str) -> Benchmark:
    """Open a benchmark's dataset and regions; `field` names it in messages.

    Raises:
        DataError: a dataset that is unfinished or damaged, a split without rows, or a regions
            file that is missing, malformed, or about other images.
        ConfigError: a relative path inside a Ray job.
    """
    path = storage.usable_path(config.dataset, f"{field}.dataset")
    dataset = open_dataset(path)
    pieces: list[Piece] = []
    urls: list[str] = []
    sentences: list[tuple[str, ...]] = []
    for entry in dataset.files:
        for index, rows in _split_rows(dataset, entry, config.split):
            pieces.append(Piece(entry.name, index, len(urls)))
            urls += [row["url"] for row in rows]
            sentences += [tuple(evaluation_caption(row["captions"])) for row in rows]
    if not urls:
        raise DataError(
            f"{path}: no row has split '{config.split}' (benchmark '{config.name}'); "
            f"check {field}.split"
        )
    regions: Regions = {}
    fingerprint = dataset.fingerprint
    if config.regions is not None:
        file = storage.usable_path(config.regions, f"{field}.regions")
        regions, digest = read_regions(file, set(urls))
        fingerprint = f"{fingerprint}+{digest}"
    return Benchmark(
        config.name,
        config.split,
        dataset,
        DatasetRows(path, config.split),
        tuple(pieces),
        tuple(urls),
        tuple(sentences),
        tuple(range(len(sentences))),
        regions,
        fingerprint,
        RegionMeasure(regions) if regions else None,
        config.preprocess or ("squash" if regions else None),
    )


def read_piece(dataset: str, split: str, piece: Piece) -> list[dict[str, Any]]:
    """The rows of one piece with `url`, `image`, `captions` and `superpixels`.

    Raises:
        DataError: the file has been damaged since it was opened.
    """
    columns = ("url", "image", "captions", "superpixels")
    return _read_row_group(dataset, piece.file, piece.row_group, split, columns)


def evaluation_caption(captions: Sequence[Mapping[str, Any]]) -> list[str]:
    """The sentences an image is scored with: of its first long caption, else of its first."""
    for caption in captions:
        if caption["kind"] == "long":
            return list(caption["sentences"])
    return list(captions[0]["sentences"])


def read_regions(path: str, urls: set[str]) -> tuple[Regions, str]:
    """The regions of `urls` in a JSON Lines file, and the file's digest.

    A line is `{"url": ..., "regions": [{"text", "size": [h, w], "counts": [...]}, ...]}`; lines
    about other images are passed over.

    Raises:
        DataError: the file is missing, a line is not of that form, or none is about `urls`.
    """
    if not storage.exists(path):
        raise DataError(f"{path}: no such regions file; correct 'regions', or leave it out")
    data = storage.read_bytes(path)
    regions: dict[str, tuple[Region, ...]] = {}
    for number, line in enumerate(data.splitlines(), 1):
        try:
            entry = json.loads(line)
            found = tuple(_region(raw) for raw in entry["regions"])
            if entry["url"] in urls:
                regions[entry["url"]] = found
        except (ValueError, KeyError, TypeError, DataError) as error:
            reason = f"no '{error.args[0]}'" if isinstance(error, KeyError) else str(error)
            raise DataError(
                f"{path}: line {number} is not an object with url and regions of text, size and "
                f"counts: {reason}"
            ) from None
    if not any(regions.values()):
        raise DataError(
            f"{path}: none of its URLs is in the benchmark; they must equal the dataset's"
        )
    return regions, hashlib.sha256(data).hexdigest()


def _region(raw: Mapping[str, Any]) -> Region:
    region = Region(str(raw["text"]), {"size": raw["size"], "counts": raw["counts"]})
    decode_rle(region.rle)  # a mask that cannot be read is found now, not on a worker
    return region


def _split_rows(
    dataset: Dataset, entry: FileEntry, split: str
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Row groups of a file that hold rows of the split, with URL and captions of those rows."""
    fs, path = storage.filesystem(storage.join(dataset.path, entry.name))
    for index in range(pq.read_metadata(path, filesystem=fs).num_row_groups):
        if _read_row_group(dataset.path, entry.name, index, split, ()):
            columns = ("url", "captions")
            yield index, _read_row_group(dataset.path, entry.name, index, split, columns)


def _read_row_group(
    dataset: str, name: str, index: int, split: str, columns: tuple[str, ...]
) -> list[dict[str, Any]]:
    path = storage.join(dataset, name)
    fs, inner = storage.filesystem(path)
    try:
        with pq.ParquetFile(inner, filesystem=fs) as file:
            table = file.read_row_group(index, columns=[*columns, "split"])
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path}: corrupt Parquet ({reason}); delete it and run the data stage again"
        ) from None
    return table.filter(pc.equal(table["split"], split)).to_pylist()


class MissingSet(DataError):
    """A published set that is not there, or not whole."""


def open_published(config: PublishedConfig, field: str) -> Benchmark:
    """Open a published set; `field` names it in messages.

    Raises:
        MissingSet: files or entries are missing, or there are too many, unless `partial`.
        ConfigError: a set or split that is not known, or a relative path inside a Ray job.
    """
    inventory = take_inventory(config, field)
    present = inventory.present
    if inventory.problems and not (config.partial and present):
        raise MissingSet(
            f"{field} '{config.name}': {'; '.join(inventory.problems)}. It comes from "
            f"{inventory.source}; --check-data lists what is missing"
        )
    if inventory.problems:
        print(f"evaluate: {config.name} is partial: {'; '.join(inventory.problems)}", flush=True)
    captions = []
    text_to_image = []
    for position, found in enumerate(present):
        for caption in found.entry.captions:
            if not split_sentences(caption):
                raise MissingSet(f"{field} '{config.name}': {found.image.path}: empty caption")
            captions.append(caption)
            text_to_image.append(position)
    regions = {found.image.path: found.entry.regions for found in present if found.entry.regions}
    label_maps = tuple(found.label_map.path for found in present if found.label_map)
    rows = ImageFiles(config.root, tuple(found.image.path for found in present), label_maps)
    measure: Measure | None = RegionMeasure(regions) if regions else None
    settings = [config.set, inventory.split]
    if inventory.classes:
        prompts = class_prompts(inventory.classes, config.templates)
        measure = SegmentationMeasure(prompts)
        settings += [text for texts in prompts for text in texts]
    return Benchmark(
        config.name,
        inventory.split,
        None,
        rows,
        rows.pieces,
        rows.images,
        tuple(captions),
        tuple(text_to_image),
        regions,
        _fingerprint(present, settings),
        measure,
        preprocess=config.preprocess or ("squash" if measure else None),
        rule=config.sentences,
    )


def _fingerprint(present: Iterable[Present], settings: Iterable[str]) -> str:
    """Digest of names, sizes and texts: the same wherever the files lie. Images are told apart by
    their size in bytes; reading them all would take longer than encoding them."""
    digest = hashlib.sha256(json.dumps(list(settings)).encode())
    for found in present:
        entry = found.entry
        label_map = [entry.label_map, found.label_map.bytes] if found.label_map else []
        regions = [[region.text, region.rle] for region in entry.regions]
        facts = [entry.image, found.image.bytes, entry.captions, regions, label_map]
        digest.update(json.dumps(facts).encode())
    return digest.hexdigest()
