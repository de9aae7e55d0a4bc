"""A user's own list of images and captions: every complaint names the list, the row and the field.
The kind of benchmark that takes no code; rows of one image are one image with several captions."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Sequence

from caft.captions import split_sentences
from caft.errors import DataError
from pipelines import user_paths
from pipelines.data.sources import paths
from pipelines.evaluate.config import ListConfig
from pipelines.evaluate.sets.base import FETCH_AGAIN, Entry, broken
from pipelines.evaluate.sets.files import File, Finder, Present, leads_out
from pipelines.evaluate.sets.listed import Listed
from pipelines.evaluate.sets.records import read_records


def read_list(config: ListConfig, field: str) -> tuple[Present, ...]:
    """The images of a list in its order, each with all its captions; `field` names the benchmark
    in messages.

    Raises:
        DataError: a list that is missing or broken, a row without image or caption, an image that
            is not there, a split without rows, or another count.
        ConfigError: a relative path inside a Ray job.
    """
    path = user_paths.usable_path(config.list, f"{field}.list")
    folders = [user_paths.usable_path(folder, f"{field}.images") for folder in config.images]
    try:
        return _read(config, field, path, folders or [paths.parent(path)])
    except DataError as error:
        reason = str(error)
        if reason.endswith(FETCH_AGAIN):
            reason = f"{reason.removesuffix(FETCH_AGAIN)}; correct the list or {field}"
        raise DataError(f"{field} '{config.name}': {reason}") from None


def _read(config: ListConfig, field: str, path: str, folders: Sequence[str]) -> tuple[Present, ...]:
    split = config.split
    listed = Listed(config.image, config.captions, split.field if split else "")
    seen: Counter[str] = Counter()
    places: dict[str, str] = {}
    captions: dict[str, list[str]] = {}
    records = read_records(path, config.records, listed.fields)
    for where, entry in listed.entries(records, split.value if split else (), seen):
        if leads_out(entry.image):
            raise broken(where, f"'{config.image}' {entry.image} leads out of the image folders")
        for caption in entry.captions:
            if not split_sentences(caption):
                raise broken(where, f"caption '{caption[:40]}' holds no words")
        name = posixpath.normpath(entry.image)
        places.setdefault(name, where)
        captions.setdefault(name, []).extend(entry.captions)
    for value in split.value if split else ():
        if value not in seen:
            there = ", ".join(f"{name} ({count:,})" for name, count in seen.most_common(10))
            raise broken(path, f"no row has {split and split.field} '{value}', there are {there}")
    if not captions:
        raise broken(path, "no row in it")
    files = _find(config.image, places, folders)
    if config.count is not None and len(captions) != config.count:
        texts = sum(map(len, captions.values()))
        raise DataError(
            f"{path}: {len(captions):,} images with {texts:,} captions, {field}.count is "
            f"{config.count:,} images"
        )
    return tuple(
        Present(Entry(name, tuple(texts)), files[name], None) for name, texts in captions.items()
    )


def _find(column: str, places: dict[str, str], folders: Sequence[str]) -> dict[str, File]:
    """The file of each image, by its name in the list; `places` says the row of each."""
    finder = Finder(folders)
    files = {name: finder.find(name) for name in places}
    missing = [name for name, file in files.items() if file is None]
    if missing:
        more = f", nor are {len(missing) - 1:,} others" if len(missing) > 1 else ""
        raise DataError(
            f"{places[missing[0]]}: '{column}' {missing[0]} is no file with content in "
            f"{', '.join(folders)}{more}; name the folder of the images in 'images'"
        )
    found = {name: file for name, file in files.items() if file}
    owners: dict[str, str] = {}
    for name, file in found.items():
        if (other := owners.setdefault(file.path, name)) != name:
            raise DataError(
                f"{places[name]}: '{column}' {name} and {other} are both found as {file.path}; "
                "name the folder above them in 'images'"
            )
    return found
