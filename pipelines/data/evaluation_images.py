"""Reads the evaluation sets of a configuration and hashes their images, once for all chunks.
Between the plan and the chunks, which refuse near-duplicates of what is found here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from caft.errors import ConfigError, DataError
from pipelines import storage
from pipelines.data.config import (
    DecontaminationConfig,
    EvaluationSet,
    ImageConfig,
    SourceConfig,
)
from pipelines.data.decontamination import SCHEMA, EvaluationHashes, evaluation_hashes
from pipelines.data.images import ImageRefused, hash_image
from pipelines.data.layout import Layout
from pipelines.data.sources import (
    CONTAINERS,
    detect_kind,
    fetch_file,
    list_containers,
    parse_rows,
    read_container,
    read_tables,
)
from pipelines.data.write import read_table, write_table
from pipelines.workers import run_tasks


def check_evaluation_sets(config: DecontaminationConfig) -> None:
    """Raises ConfigError where a set is no folder of images, tars or dataset of this stage."""
    for number, evaluation_set in enumerate(config.sets):
        kind = detect_kind(_source(evaluation_set))
        if kind not in (*CONTAINERS, "folder"):
            raise ConfigError(
                f"decontamination.sets.{number}.path: {evaluation_set.path} is a list of URLs "
                f"({kind}); give a folder of images, WebDataset tars or a dataset of this stage"
            )


def all_evaluation_hashes(
    config: DecontaminationConfig, layout: Layout, concurrency: int
) -> EvaluationHashes | None:
    """Hashes of all sets' images; None without a set.

    Raises:
        DataError: an image that cannot be decoded, or a set without an image.
    """
    if not config.sets:
        return None
    paths = [
        storage.join(layout.work, f"evaluation-{number}.parquet")
        for number in range(len(config.sets))
    ]

    def work(number: int) -> None:
        write_table(paths[number], hash_set(config, number).to_table())

    todo = [number for number, path in enumerate(paths) if not storage.exists(path)]
    for _ in run_tasks("evaluation_images", work, todo, concurrency):
        pass
    tables = [read_table(path) for path in paths]
    return EvaluationHashes.from_table(pa.concat_tables([SCHEMA.empty_table(), *tables]))


def hash_set(config: DecontaminationConfig, number: int) -> EvaluationHashes:
    """Hashes of one set's images; errors as `all_evaluation_hashes`."""
    hashed = evaluation_hashes(_images(config.sets[number]), _hashes)
    if not len(hashed.hashes):
        raise DataError(f"decontamination.sets.{number}: no image in {config.sets[number].path}")
    return hashed


def _hashes(data: bytes) -> tuple[int, int]:
    try:
        found = hash_image(data, ImageConfig())
    except ImageRefused as refusal:
        reason, detail = refusal.args
        raise DataError(f"{reason}: {detail}; remove it from the set, or mend it") from None
    return found["phash"], found["mirrored_phash"]


def _images(evaluation_set: EvaluationSet) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each image of a set."""
    for row in _rows(_source(evaluation_set)):
        name = f"{evaluation_set.name}/{row['url'].rsplit('/', 1)[-1]}"
        if row["data"] is None:
            row["reason"] = None  # that it has no caption does not matter here
            fetch_file(row)
        if row["data"] is None:
            raise DataError(f"decontamination: {row['url']}: {row['detail']}")
        yield name, row["data"]


def _rows(source: SourceConfig) -> Iterator[dict[str, Any]]:
    if detect_kind(source) in CONTAINERS:
        for path in list_containers(source):
            yield from read_container(path, source, ())
    else:
        for table in read_tables(source):
            yield from parse_rows(table, source)


def _source(evaluation_set: EvaluationSet) -> SourceConfig:
    return SourceConfig(name=evaluation_set.name, path=evaluation_set.path)
