"""COCO and Flickr30k: photographs with five short captions each.
Readers of published sets: COCO's own file, Karpathy's lists, Flickr30k's token file or CSV."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterator

from caft.errors import DataError
from pipelines import storage
from pipelines.evaluate.sets.base import (
    Counts,
    Entry,
    PublishedSet,
    SetFolder,
    broken,
    field,
    items,
    parse_json,
    read_json,
    read_text,
)

MOST_CAPTIONS = 5  # a few images have more; retrieval is reported with the first five of each
VAL2017 = "val2017"
KARPATHY = "karpathy_"
FLICKR_LIST = "dataset_flickr30k.json"
FLICKR_CSV = "flickr_annotations_30k.csv"
FLICKR_TOKENS = ("results_20130124.token", "results.token")


def read_coco(folder: SetFolder, split: str) -> Iterator[Entry]:
    """Images of `captions_val2017.json` in its order, or a split of `dataset_coco.json`."""
    if split.startswith(KARPATHY):
        path = folder.path("dataset_coco.json", "annotations/dataset_coco.json")
        yield from karpathy(path, split.removeprefix(KARPATHY))
        return
    path = folder.path(f"annotations/captions_{VAL2017}.json", f"captions_{VAL2017}.json")
    content = read_json(path)
    captions: dict[int, list[str]] = defaultdict(list)
    for where, entry in items(f"{path}: annotations", field(path, content, "annotations", list)):
        captions[field(where, entry, "image_id", int)].append(field(where, entry, "caption", str))
    for where, entry in items(f"{path}: images", field(path, content, "images", list)):
        own = captions[field(where, entry, "id", int)][:MOST_CAPTIONS]
        yield Entry(f"{VAL2017}/{field(where, entry, 'file_name', str)}", tuple(own))


def karpathy(path: str, split: str) -> Iterator[Entry]:
    """A split of one of Karpathy's lists."""
    for where, entry in items(f"{path}: images", field(path, read_json(path), "images", list)):
        if field(where, entry, "split", str) == split:
            name = field(where, entry, "filename", str)
            place = entry.get("filepath")
            sentences = items(where, field(where, entry, "sentences", list))
            own = [field(inner, sentence, "raw", str) for inner, sentence in sentences]
            yield Entry(f"{place}/{name}" if place else name, tuple(own[:MOST_CAPTIONS]))


def read_flickr(folder: SetFolder, split: str) -> Iterator[Entry]:
    """A split of Karpathy's list or of the CSV made of it; or the token file's captions of the
    images that `test.txt` names."""
    path = folder.path(FLICKR_LIST, FLICKR_CSV, *FLICKR_TOKENS)
    if path.endswith(FLICKR_LIST):
        yield from karpathy(path, split)
    elif path.endswith(FLICKR_CSV):
        yield from _flickr_csv(path, split)
    else:
        yield from _flickr_tokens(folder, path, split)


def _flickr_csv(path: str, split: str) -> Iterator[Entry]:
    for number, row in enumerate(csv.DictReader(io.StringIO(read_text(path))), 1):
        where = f"{path}: row {number}"
        if field(where, row, "split", str) == split:
            texts = parse_json(where, field(where, row, "raw", str))
            own = [text for _, text in items(f"{where}: raw", texts)]
            yield Entry(field(where, row, "filename", str), tuple(own[:MOST_CAPTIONS]))


def _flickr_tokens(folder: SetFolder, path: str, split: str) -> Iterator[Entry]:
    captions: dict[str, list[str]] = defaultdict(list)
    for number, line in enumerate(read_text(path).strip().split("\n"), 1):
        name, tab, caption = line.partition("\t")
        if not tab:
            raise broken(f"{path}: line {number}", "no tab between image and caption")
        captions[name.partition("#")[0]].append(caption.strip())
    for name in read_text(folder.path(f"{split}.txt")).split():
        image = name if name.endswith(".jpg") else f"{name}.jpg"
        if image not in captions:
            raise DataError(f"{storage.join(folder.root, split)}.txt: {path} has no {image}")
        yield Entry(image, tuple(captions[image][:MOST_CAPTIONS]))


COCO = PublishedSet(
    read_coco,
    {
        VAL2017: Counts(5000, 25_000),
        f"{KARPATHY}test": Counts(5000, 25_000),
        f"{KARPATHY}val": Counts(5000, 25_000),
    },
    images=("",),
    source="https://cocodataset.org/#download (val2017.zip, annotations_trainval2017.zip); for "
    "Karpathy's splits val2014.zip and dataset_coco.json of "
    "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
)
FLICKR30K = PublishedSet(
    read_flickr,
    {"test": Counts(1000, 5000), "val": Counts(1014, 5070)},
    images=("flickr30k-images", "images"),
    source="https://shannon.cs.illinois.edu/DenotationGraph/ (images and token file), and "
    f"{FLICKR_LIST} of "
    "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
)
