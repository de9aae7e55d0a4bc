"""Makes benchmarks of published sets: every complaint about their files is made here, before Ray.
Between the readers of sets and the rest of the stage, which does not know where rows came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from caft.captions import split_sentences
from caft.errors import DataError
from pipelines.evaluate.benchmark import Benchmark, Measure, class_prompts
from pipelines.evaluate.config import PublishedConfig
from pipelines.evaluate.localisation import RegionMeasure
from pipelines.evaluate.segmentation import SegmentationMeasure
from pipelines.evaluate.sets.files import ImageFiles
from pipelines.evaluate.sets.stock import Present, take_stock


class MissingSet(DataError):
    """A published set that is not there, or not whole."""


def open_published(config: PublishedConfig, field: str) -> Benchmark:
    """Open a published set; `field` names it in messages.

    Raises:
        MissingSet: files or entries are missing, or there are too many, unless `partial`.
        ConfigError: a set or split that is not known, or a relative path inside a Ray job.
    """
    stock = take_stock(config, field)
    present = stock.present
    if stock.problems and not (config.partial and present):
        raise MissingSet(
            f"{field} '{config.name}': {'; '.join(stock.problems)}. It comes from {stock.source}; "
            "--check-data lists what is missing"
        )
    if stock.problems:
        print(f"evaluate: {config.name} is partial: {'; '.join(stock.problems)}", flush=True)
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
    settings = [config.set, stock.split]
    if stock.classes:
        prompts = class_prompts(stock.classes, config.templates)
        measure = SegmentationMeasure(prompts)
        settings += [text for texts in prompts for text in texts]
    return Benchmark(
        config.name,
        stock.split,
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
