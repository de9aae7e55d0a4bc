"""Urban-1k: a folder of images and one of texts, or one JSON list of both.
A reader of published sets."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipelines import storage
from pipelines.evaluate.sets.base import (
    Counts,
    Entry,
    PublishedSet,
    SetFolder,
    broken,
    field,
    items,
    read_json,
    read_text,
)

TEXT = ".txt"
IMAGES = ("image", "images")  # as published; as CAFT's published code has it
IMAGE_FOLDER = re.compile(rf"^({'|'.join(IMAGES)})/")


def read(folder: SetFolder, split: str) -> Iterator[Entry]:
    """Entries of `caption/*.txt`, by number, or of the folder's one `.json`: a list of objects
    with `image` and `caption`."""
    lists = storage.list_files(folder.root, ".json")
    texts = storage.join(folder.root, "caption")
    names = storage.list_files(texts, TEXT)
    if not names and len(lists) == 1:
        path = storage.join(folder.root, lists[0])
        for where, entry in items(path, read_json(path)):
            image = field(where, entry, "image", str)
            yield Entry(IMAGE_FOLDER.sub("", image), (field(where, entry, "caption", str),))
        return
    folder.path("caption")
    images = storage.list_files(folder.path(*IMAGES))
    stems = {name.rpartition(".")[0]: name for name in images}
    for name in sorted(names, key=lambda name: (len(name), name)):
        stem, path = name.removesuffix(TEXT), storage.join(texts, name)
        caption = read_text(path).strip()
        if not caption:
            raise broken(path, "empty")
        yield Entry(stems.get(stem, f"{stem}.jpg"), (caption,))


URBAN_1K = PublishedSet(
    read,
    {"test": Counts(1000, 1000)},
    images=IMAGES,
    source="https://huggingface.co/datasets/BeichenZhang/Urban1k (Urban1k.zip)",
)
