"""What of a published set is there: its entries, the files of their images, and what is missing.
Before a benchmark is opened, and behind `--check-data`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from caft.errors import ConfigError, DataError, StorageError
from pipelines import storage, user_paths
from pipelines.evaluate.config import PublishedConfig
from pipelines.evaluate.sets import SETS
from pipelines.evaluate.sets.base import Counts, PublishedSet, SetFolder
from pipelines.evaluate.sets.files import Finder, Present


@dataclass(frozen=True)
class Inventory:
    """A split of a set as it was found."""

    split: str
    published: Counts
    source: str
    entries: int
    texts: int
    present: tuple[Present, ...]
    missing: tuple[str, ...]  # files that entries name
    classes: tuple[str, ...]
    failure: str = ""  # why nothing could be read

    @cached_property
    def problems(self) -> list[str]:
        """Everything that keeps it from being the set that was published."""
        if self.failure:
            return [self.failure]
        found = []
        for what, count, due in (
            ("images", self.entries, self.published.images),
            ("texts", self.texts, self.published.texts),
        ):
            if due is not None and count != due:
                found.append(f"{count:,} {what} are listed, {due:,} were published")
        if self.missing:
            found.append(f"{len(self.missing):,} files are missing, first {self.missing[0]}")
        return found


def take_inventory(config: PublishedConfig, field: str) -> Inventory:
    """Read a set's lists and look for its files; `field` names it in messages.

    Raises:
        ConfigError: a set or split that is not known, or a relative path inside a Ray job.
    """
    known = SETS.get(config.set)
    if known is None:
        raise ConfigError(
            f"{field}.set: '{config.set}' is no published set; there are {', '.join(SETS)}"
        )
    split = config.split or next(iter(known.splits))
    if split not in known.splits:
        raise ConfigError(
            f"{field}.split: {config.set} has no '{split}'; there are {', '.join(known.splits)}"
        )
    root = user_paths.usable_path(config.root, f"{field}.root")
    folders = [user_paths.usable_path(path, f"{field}.images") for path in config.images]
    folders = folders or [storage.join(root, name) if name else root for name in known.images]
    try:
        return _found(known, split, SetFolder(root), folders)
    except (DataError, StorageError) as error:
        return Inventory(split, known.splits[split], known.source, 0, 0, (), (), (), str(error))


def _found(known: PublishedSet, split: str, folder: SetFolder, folders: Sequence[str]) -> Inventory:
    entries = list(known.read(folder, split))
    images, maps = Finder(folders), Finder([folder.root])
    present, missing = [], []
    for entry in entries:
        image = images.find(entry.image)
        label_map = maps.find(entry.label_map) if entry.label_map else None
        if image is None:
            missing.append(storage.join(folders[0], entry.image))
        elif entry.label_map and label_map is None:
            missing.append(storage.join(folder.root, entry.label_map))
        else:
            present.append(Present(entry, image, label_map))
    return Inventory(
        split,
        known.splits[split],
        known.source,
        len(entries),
        sum(len(entry.captions) + len(entry.regions) for entry in entries),
        tuple(present),
        tuple(missing),
        known.classes(folder) if known.classes else (),
    )
