"""Published sets that are lists of images and captions, one row of a table for each of their lists.
What takes more than fields (several files to one record) gathers its records below the table."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice

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
    read_json,
    read_text,
)
from pipelines.evaluate.sets.listed import PublishedList
from pipelines.evaluate.sets.records import Record, read_records

ALL = "all"
FIVE = 5  # a few images have more captions; retrieval is reported with the first five of each
KARPATHY = "karpathy_"
VAL2017 = "val2017"
CAPTION_DATASETS = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
SHAREGPT4V_LIST = "share-captioner_coco_lcs_sam_1246k_1107.json"
FLICKR_TOKENS = ("results_20130124.token", "results.token")
URBAN_IMAGES = ("image", "images")  # as published; as CAFT's published code has it
# Images by the names of the whole list, and of the list that comes with CAFT's published code: by
# the archive of SA-1B that each is in.
SAM = re.compile(r"sam/|sa_\d+/")


def _sam_entries(folder: SetFolder, split: str) -> Iterator[Record]:
    """Records about SA-1B, of the whole list or of the first 10,000 alone."""
    path = folder.path(SHAREGPT4V_LIST, "share4v_sam_10k.json")
    for where, entry in read_records(path):
        if SAM.match(field(where, entry, "image", str)):
            if len(field(where, entry, "conversations", list)) < 2:
                raise broken(where, "no answer in 'conversations'")
            yield where, entry


def _dci_files(folder: SetFolder, split: str) -> Iterator[Record]:
    """The files that `splits.json` lists, in `annotations/` or `complete/`."""
    path = folder.path("splits.json")
    lists = read_json(path)
    texts = folder.path("annotations", "complete")
    for name in ("train", "valid", "test") if split == ALL else [split]:
        for _, file in items(f"{path}: {name}", field(path, lists, name, list)):
            where = f"{texts}/{file}"
            yield where, read_json(where)


def _urban_texts(folder: SetFolder, split: str) -> Iterator[Record]:
    """`caption/*.txt` by number, or the folder's one `.json`: a list of both."""
    lists = storage.list_files(folder.root, ".json")
    texts = storage.join(folder.root, "caption")
    names = storage.list_files(texts, ".txt")
    if not names and len(lists) == 1:
        for where, entry in read_records(storage.join(folder.root, lists[0])):
            image = re.sub(r"^images?/", "", field(where, entry, "image", str))
            yield where, {**entry, "image": image}
        return
    folder.path("caption")
    images = storage.list_files(folder.path(*URBAN_IMAGES))
    stems = {name.rpartition(".")[0]: name for name in images}
    for name in sorted(names, key=lambda name: (len(name), name)):
        stem, path = name.removesuffix(".txt"), storage.join(texts, name)
        caption = read_text(path).strip()
        if not caption:
            raise broken(path, "empty")
        yield path, {"image": stems.get(stem, f"{stem}.jpg"), "caption": caption}


def _coco_captions(folder: SetFolder, split: str) -> Iterator[Record]:
    """Images of COCO's own file in its order, each with its captions."""
    path = folder.path(f"annotations/captions_{VAL2017}.json", f"captions_{VAL2017}.json")
    content = read_json(path)
    captions: dict[int, list[str]] = defaultdict(list)
    for where, entry in items(f"{path}: annotations", field(path, content, "annotations", list)):
        captions[field(where, entry, "image_id", int)].append(field(where, entry, "caption", str))
    for where, entry in items(f"{path}: images", field(path, content, "images", list)):
        name = f"{VAL2017}/{field(where, entry, 'file_name', str)}"
        yield where, {"image": name, "captions": captions[field(where, entry, "id", int)]}


def _flickr_tokens(folder: SetFolder, split: str) -> Iterator[Record]:
    """The token file's captions of the images that a file named after the split lists."""
    path = folder.path(*FLICKR_TOKENS)
    captions: dict[str, list[str]] = defaultdict(list)
    for number, line in enumerate(read_text(path).strip().split("\n"), 1):
        name, tab, caption = line.partition("\t")
        if not tab:
            raise broken(f"{path}: line {number}", "no tab between image and caption")
        captions[name.partition("#")[0]].append(caption.strip())
    names = folder.path(f"{split}.txt")
    for name in read_text(names).split():
        image = name if name.endswith(".jpg") else f"{name}.jpg"
        if image not in captions:
            raise DataError(f"{names}: {path} has no {image}")
        yield f"{path}: {image}", {"image": image, "captions": captions[image]}


def _iiw(folder: SetFolder, split: str) -> Iterator[Entry]:
    for part in IIW_PARTS if split == ALL else [split]:
        yield from IIW_PARTS[part].read(folder, part)


def _coco(folder: SetFolder, split: str) -> Iterator[Entry]:
    listed = COCO_KARPATHY if split.startswith(KARPATHY) else COCO_OWN
    return listed.read(folder, split.removeprefix(KARPATHY))


def _flickr(folder: SetFolder, split: str) -> Iterator[Entry]:
    path = folder.path(*(name for listed in FLICKR_LISTS for name in listed.files))
    (listed,) = (one for one in FLICKR_LISTS if path.endswith(one.files))
    return listed.read(folder, split)


def _first(count: int) -> Callable[[SetFolder, str], Iterator[Entry]]:
    return lambda folder, split: islice(SHAREGPT4V.read(folder, split), count)


DCI = PublishedList("image", (("short_caption", "extra_caption"),), most=1, gather=_dci_files)
DOCCI = PublishedList(
    "image_file",
    (("description",),),
    split="split",
    most=1,
    files=(  # as published, and in a folder that was prepared for CAFT's published code
        "docci_descriptions.jsonlines",
        "annotations/docci_descriptions.jsonlines",
        "annotations/docci_descriptions.jsonline",
        "docci_descriptions.jsonline",
    ),
)
IIW = PublishedList("image", (("IIW",),), most=1)
IIW_PARTS = {
    "iiw_400": replace(
        IIW, image="image/key", ending=".jpg", files=("IIW-400/data.jsonl", "IIW-400.jsonl")
    ),
    "dci_test": replace(IIW, files=("DCI_Test/data.jsonl", "DCI_Test.jsonl")),
    "docci_test": replace(IIW, ending=".jpg", files=("DOCCI_Test/data.jsonl", "DOCCI_Test.jsonl")),
}
SHAREGPT4V = PublishedList("image", (("conversations.1.value",),), most=1, gather=_sam_entries)
URBAN = PublishedList("image", (("caption",),), most=1, gather=_urban_texts)
PER_IMAGE = PublishedList("image", (("captions",),), most=FIVE)  # records that were gathered
COCO_OWN = replace(PER_IMAGE, gather=_coco_captions)
KARPATHY_LIST = PublishedList(
    "filename",
    (("sentences.raw",),),
    split="split",
    folder="filepath",
    most=FIVE,
    records="images",
)
COCO_KARPATHY = replace(KARPATHY_LIST, files=("dataset_coco.json", "annotations/dataset_coco.json"))
FLICKR_LISTS = (
    replace(KARPATHY_LIST, files=("dataset_flickr30k.json",)),
    replace(KARPATHY_LIST, captions=(("raw",),), files=("flickr_annotations_30k.csv",)),
    replace(PER_IMAGE, gather=_flickr_tokens, files=FLICKR_TOKENS),
)


def _sharegpt4v(count: int) -> PublishedSet:
    return PublishedSet(
        _first(count),
        {"first": Counts(count, count)},
        images=("",),
        source=f"https://huggingface.co/datasets/Lin-Chen/ShareGPT4V ({SHAREGPT4V_LIST}); images "
        "from SA-1B, https://ai.meta.com/datasets/segment-anything-downloads/, as sam/images/*.jpg "
        "or sa_000048/images/*.jpg",
        files=f"`{SHAREGPT4V_LIST}`, or its first 10,000 as `share4v_sam_10k.json`",
    )


CAPTION_SETS: Mapping[str, PublishedSet] = {
    "dci": PublishedSet(
        DCI.read,
        {
            ALL: Counts(7805, 7805),
            "train": Counts(7599, 7599),
            "valid": Counts(98, 98),
            "test": Counts(108, 108),
        },
        images=("photos",),
        source="https://github.com/facebookresearch/DCI (dci.tar.gz); photographs from SA-1B's "
        "sa_000138.tar, https://ai.meta.com/datasets/segment-anything-downloads/",
        files="`splits.json`, `annotations/*.json` or `complete/*.json`",
    ),
    "docci": PublishedSet(
        DOCCI.read,
        {
            "test": Counts(5000, 5000),
            "train": Counts(9647, 9647),
            "qual_dev": Counts(100, 100),
            "qual_test": Counts(100, 100),
        },
        images=("images",),
        source="https://google.github.io/docci/ (docci_descriptions.jsonlines and images)",
        files="`docci_descriptions.jsonlines`, or `annotations/docci_descriptions.jsonline`",
    ),
    "iiw": PublishedSet(
        _iiw,
        {
            ALL: Counts(612, 612),
            "iiw_400": Counts(400, 400),
            "dci_test": Counts(112, 112),
            "docci_test": Counts(100, 100),
        },
        images=("images", "images_aar", "photos"),
        source="https://github.com/google/imageinwords (datasets/); images from DOCCI (images and "
        "images_aar, https://google.github.io/docci/) and from DCI's photos",
        files="`IIW-400`, `DCI_Test`, `DOCCI_Test`: each `NAME/data.jsonl` or `NAME.jsonl`",
    ),
    "sharegpt4v_1k": _sharegpt4v(1000),
    "sharegpt4v_10k": _sharegpt4v(10_000),
    "urban_1k": PublishedSet(
        URBAN.read,
        {"test": Counts(1000, 1000)},
        images=URBAN_IMAGES,
        source="https://huggingface.co/datasets/BeichenZhang/Urban1k (Urban1k.zip)",
        files="`caption/*.txt`, or one `.json`: a list of `image` and `caption`",
    ),
    "coco": PublishedSet(
        _coco,
        {
            VAL2017: Counts(5000, 25_000),
            f"{KARPATHY}test": Counts(5000, 25_000),
            f"{KARPATHY}val": Counts(5000, 25_000),
        },
        images=("",),
        source="https://cocodataset.org/#download (val2017.zip, annotations_trainval2017.zip); for "
        f"Karpathy's splits val2014.zip and dataset_coco.json of {CAPTION_DATASETS}",
        files="`annotations/captions_val2017.json`; `dataset_coco.json` for Karpathy's splits",
    ),
    "flickr30k": PublishedSet(
        _flickr,
        {"test": Counts(1000, 5000), "val": Counts(1014, 5070)},
        images=("flickr30k-images", "images"),
        source="https://shannon.cs.illinois.edu/DenotationGraph/ (images and token file), and "
        f"dataset_flickr30k.json of {CAPTION_DATASETS}",
        files="`dataset_flickr30k.json`; or `flickr_annotations_30k.csv`; or "
        "`results_20130124.token` and `test.txt`",
    ),
}
