"""PASCAL VOC 2012 and ADE20K: photographs with a class for each pixel.
Readers of published sets; 0 and values above the last class are no class and are not counted."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines import storage
from pipelines.evaluate.sets.base import (
    Counts,
    Entry,
    PublishedSet,
    SetFolder,
    broken,
    read_text,
)

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa"),
    *("train", "tv monitor"),
)
ADE_CLASSES = 150
LABEL_MAP = ".png"


def read_voc(folder: SetFolder, split: str) -> Iterator[Entry]:
    """Images of `ImageSets/Segmentation/SPLIT.txt`."""
    for name in read_text(folder.path(f"ImageSets/Segmentation/{split}.txt")).split():
        yield Entry(f"{name}.jpg", label_map=f"SegmentationClass/{name}{LABEL_MAP}")


def read_ade(folder: SetFolder, split: str) -> Iterator[Entry]:
    """Images that have a label map in `annotations/SPLIT`."""
    maps = folder.path(f"annotations/{split}")
    for name in storage.list_files(maps, LABEL_MAP):
        image = f"{split}/{name.removesuffix(LABEL_MAP)}.jpg"
        yield Entry(image, label_map=f"annotations/{split}/{name}")


def ade_classes(folder: SetFolder) -> tuple[str, ...]:
    """First names of `objectInfo150.txt`, whose last column has several of each class."""
    path = folder.path("objectInfo150.txt")
    lines = [line for line in read_text(path).splitlines() if line.strip()]
    names = [line.rpartition("\t")[2].partition(",")[0].strip() for line in lines[1:]]
    if len(names) != ADE_CLASSES:
        raise broken(path, f"{len(names)} classes, {ADE_CLASSES} are due")
    return tuple(names)


VOC20 = PublishedSet(
    read_voc,
    {"val": Counts(1449), "train": Counts(1464), "trainval": Counts(2913)},
    images=("JPEGImages",),
    source="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ (VOCtrainval_11-May-2012.tar); the "
    "folder is VOCdevkit/VOC2012",
    files="`ImageSets/Segmentation/*.txt`, `SegmentationClass/*.png`",
    classes=lambda _: VOC_CLASSES,
)
ADE150 = PublishedSet(
    read_ade,
    {"validation": Counts(2000), "training": Counts(20_210)},
    images=("images",),
    source="http://sceneparsing.csail.mit.edu/ (ADEChallengeData2016.zip)",
    files="`objectInfo150.txt`, `annotations/SPLIT/*.png`",
    classes=ade_classes,
)
