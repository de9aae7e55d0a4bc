"""DOCCI, and ImageInWords, which describes some of the same photographs anew.
Readers of published sets, both of JSON Lines."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.evaluate.sets.base import Counts, Entry, PublishedSet, SetFolder, field, json_lines

ALL = "all"
# As published, and in a folder that was prepared for CAFT's published code.
DESCRIPTIONS = (
    "docci_descriptions.jsonlines",
    "annotations/docci_descriptions.jsonlines",
    "annotations/docci_descriptions.jsonline",
    "docci_descriptions.jsonline",
)
# Part of ImageInWords: its folder or file, the key of its images, and what their names end with.
PARTS = {
    "iiw_400": ("IIW-400", "image/key", ".jpg"),
    "dci_test": ("DCI_Test", "image", ""),
    "docci_test": ("DOCCI_Test", "image", ".jpg"),
}


def read_docci(folder: SetFolder, split: str) -> Iterator[Entry]:
    """Entries of the list of descriptions that are of the split."""
    for where, entry in json_lines(folder.path(*DESCRIPTIONS)):
        if field(where, entry, "split", str) == split:
            image = field(where, entry, "image_file", str)
            yield Entry(image, (field(where, entry, "description", str),))


def read_iiw(folder: SetFolder, split: str) -> Iterator[Entry]:
    """Entries of one part, or of all three, each `PART/data.jsonl` or `PART.jsonl`."""
    for part in PARTS if split == ALL else [split]:
        name, key, ending = PARTS[part]
        for where, entry in json_lines(folder.path(f"{name}/data.jsonl", f"{name}.jsonl")):
            image = field(where, entry, key, str)
            yield Entry(f"{image}{ending}", (field(where, entry, "IIW", str),))


DOCCI = PublishedSet(
    read_docci,
    {
        "test": Counts(5000, 5000),
        "train": Counts(9647, 9647),
        "qual_dev": Counts(100, 100),
        "qual_test": Counts(100, 100),
    },
    images=("images",),
    source="https://google.github.io/docci/ (docci_descriptions.jsonlines and images)",
)
IIW = PublishedSet(
    read_iiw,
    {
        ALL: Counts(612, 612),
        "iiw_400": Counts(400, 400),
        "dci_test": Counts(112, 112),
        "docci_test": Counts(100, 100),
    },
    images=("images", "images_aar", "photos"),
    source="https://github.com/google/imageinwords (datasets/); images from DOCCI (images and "
    "images_aar, https://google.github.io/docci/) and from DCI's photos",
)
