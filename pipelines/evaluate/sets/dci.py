"""Densely Captioned Images: one JSON file per photograph, and a list of them for each split.
A reader of published sets; the caption is the short one and the rest of the description."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.evaluate.sets.base import (
    Counts,
    Entry,
    PublishedSet,
    SetFolder,
    field,
    items,
    read_json,
)

ALL = "all"
SPLITS = {ALL: Counts(7805, 7805), "train": Counts(7599, 7599)}
SPLITS |= {"valid": Counts(98, 98), "test": Counts(108, 108)}


def read(folder: SetFolder, split: str) -> Iterator[Entry]:
    """Entries of `splits.json`, each from its file in `annotations/` or `complete/`."""
    path = folder.path("splits.json")
    lists = read_json(path)
    texts = folder.path("annotations", "complete")
    for name in [name for name in SPLITS if name != ALL] if split == ALL else [split]:
        for _, file in items(f"{path}: {name}", field(path, lists, name, list)):
            where = f"{texts}/{file}"
            entry = read_json(where)
            caption = "\n".join(
                field(where, entry, key, str) for key in ("short_caption", "extra_caption")
            )
            yield Entry(field(where, entry, "image", str), (caption,))


DCI = PublishedSet(
    read,
    SPLITS,
    images=("photos",),
    source="https://github.com/facebookresearch/DCI (dci.tar.gz); photographs from SA-1B's "
    "sa_000138.tar, https://ai.meta.com/datasets/segment-anything-downloads/",
)
