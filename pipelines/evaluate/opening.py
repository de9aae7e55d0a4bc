"""Opens benchmarks: which images are scored, with which captions, on which regions.
First step of the evaluate stage; every complaint about its input is made here, before Ray."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow.parquet as pq

from caft.captions import split_sentences
from caft.errors import DataError
from caft.masks import decode_rle
from pipelines import storage, user_paths
from pipelines.data.dataset import Dataset, FileEntry, open_dataset
from pipelines.evaluate.benchmark import Benchmark, Measure, Region, Regions, class_prompts
from pipelines.evaluate.config import (
    AnyBenchmarkConfig,
    BenchmarkConfig,
    LabelledConfig,
    ListConfig,
    PublishedConfig,
)
from pipelines.evaluate.measures import RegionMeasure, SegmentationMeasure
from pipelines.evaluate.sets.files import ImageFiles, Present, fingerprint
from pipelines.evaluate.sets.inventory import take_inventory
from pipelines.evaluate.sets.labelled import open_labelled
from pipelines.evaluate.sets.own import read_list
from pipelines.evaluation_input import Piece, evaluation_caption, read_piece, read_row_group


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
    if isinstance(config, ListConfig):
        return open_list(config, field)
    return open_split(config, field)


def open_split(config: BenchmarkConfig, field: str) -> Benchmark:
    """Open a benchmark's dataset and regions; `field` names it in messages.

    Raises:
        DataError: a dataset that is unfinished or damaged, a split without rows, or a regions
            file that is missing, malformed, or about other images.
        ConfigError: a relative path inside a Ray job.
    """
    path = user_paths.usable_path(config.dataset, f"{field}.dataset")
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
        file = user_paths.usable_path(config.regions, f"{field}.regions")
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
        if read_row_group(dataset.path, entry.name, index, split, ()):
            columns = ("url", "captions")
            yield index, read_row_group(dataset.path, entry.name, index, split, columns)


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
    for found in present:
        if not all(split_sentences(caption) for caption in found.entry.captions):
            raise MissingSet(f"{field} '{config.name}': {found.image.path}: empty caption")
    regions = {found.image.path: found.entry.regions for found in present if found.entry.regions}
    measure: Measure | None = RegionMeasure(regions) if regions else None
    settings = [config.set, inventory.split]
    if inventory.classes:
        prompts = class_prompts(inventory.classes, config.templates)
        measure = SegmentationMeasure(prompts)
        settings += [text for texts in prompts for text in texts]
    shown = config.preprocess or ("squash" if measure else None)
    opened = _of_files(config, config.root, inventory.split, present, settings)
    return replace(opened, regions=regions, measure=measure, preprocess=shown)


def open_list(config: ListConfig, field: str) -> Benchmark:
    """Open a user's own list; `field` names it in messages.

    Raises:
        DataError: a list, a row or an image that cannot be used.
        ConfigError: a relative path inside a Ray job.
    """
    split = ",".join(config.split.value) if config.split else ""
    return _of_files(config, config.list, split, read_list(config, field), [split])


def _of_files(
    config: PublishedConfig | ListConfig,
    place: str,
    split: str,
    present: Sequence[Present],
    settings: Sequence[str],
) -> Benchmark:
    """The benchmark of images that are files of their own, and of their captions."""
    label_maps = tuple(found.label_map.path for found in present if found.label_map)
    rows = ImageFiles(place, tuple(found.image.path for found in present), label_maps)
    return Benchmark(
        config.name,
        split,
        None,
        rows,
        rows.pieces,
        rows.images,
        tuple(caption for found in present for caption in found.entry.captions),
        tuple(n for n, found in enumerate(present) for _ in found.entry.captions),
        {},
        fingerprint(present, settings),
        preprocess=config.preprocess,
        rule=config.sentences,
    )
