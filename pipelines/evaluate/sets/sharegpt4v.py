"""ShareGPT4V's first captions of SA-1B photographs, as Long-CLIP made a benchmark of them.
A reader of published sets; the list of 1.2 million entries is read as far as is needed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import islice

from pipelines.data.sources import paths
from pipelines.data.sources.sharegpt4v import list_entries
from pipelines.evaluate.sets.base import (
    Counts,
    Entry,
    PublishedSet,
    SetFolder,
    broken,
    field,
    items,
)

LIST = "share-captioner_coco_lcs_sam_1246k_1107.json"
FIRST = "first"
# The list of the first 10,000 alone that comes with CAFT's published code, and images as it names
# them beside those of the whole list: by the archive of SA-1B that each is in.
FIRST_10K = "share4v_sam_10k.json"
SAM = re.compile(r"sam/|sa_\d+/")


def reader(count: int) -> Callable[[SetFolder, str], Iterator[Entry]]:
    """A reader of the first `count` entries about SA-1B."""

    def read(folder: SetFolder, split: str) -> Iterator[Entry]:
        return islice(_entries(folder), count)

    return read


def _entries(folder: SetFolder) -> Iterator[Entry]:
    path = folder.path(LIST, FIRST_10K)
    with paths.open_stream(path) as stream:
        for number, entry in list_entries(stream, path):
            where = f"{path}: entry {number}"
            image = field(where, entry, "image", str)
            if not SAM.match(image):
                continue
            turns = list(items(where, field(where, entry, "conversations", list)))
            if len(turns) < 2:
                raise broken(where, "no answer in 'conversations'")
            yield Entry(image, (field(*turns[1], "value", str),))


def _published(count: int) -> PublishedSet:
    return PublishedSet(
        reader(count),
        {FIRST: Counts(count, count)},
        images=("",),
        source=f"https://huggingface.co/datasets/Lin-Chen/ShareGPT4V ({LIST}); images from SA-1B, "
        "https://ai.meta.com/datasets/segment-anything-downloads/, as sam/images/*.jpg or "
        "sa_000048/images/*.jpg",
    )


SHAREGPT4V_1K, SHAREGPT4V_10K = _published(1000), _published(10_000)
