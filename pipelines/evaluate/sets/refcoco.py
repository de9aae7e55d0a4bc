"""RefCOCO, RefCOCO+ and G-Ref: sentences about single objects of COCO photographs, with masks.
Readers of published sets; the pickles among their files are read without running anything."""

from __future__ import annotations

import io
import pickle
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from caft.errors import DataError
from caft.masks import decode_rle, encode_rle, polygons_to_mask
from pipelines import storage
from pipelines.evaluate.benchmark import Region
from pipelines.evaluate.sets.base import (
    Counts,
    Entry,
    PublishedSet,
    SetFolder,
    broken,
    field,
    items,
    read_json,
)


def reader(dataset: str, by: str) -> Callable[[SetFolder, str], Iterator[Entry]]:
    """A reader of `DATASET/refs(BY).p` and `DATASET/instances.json`."""

    def read(folder: SetFolder, split: str) -> Iterator[Entry]:
        name = f"refs({by}).p"
        path = folder.path(f"{dataset}/{name}", name)
        instances = folder.path(f"{dataset}/instances.json", "instances.json")
        masks = _Masks(instances)
        regions: dict[int, list[Region]] = defaultdict(list)
        for where, ref in items(path, read_refs(path)):
            if field(where, ref, "split", str) != split:
                continue
            image, rle = masks.of(field(where, ref, "ann_id", int), where)
            for inner, sentence in items(where, field(where, ref, "sentences", list)):
                regions[image].append(Region(field(inner, sentence, "sent", str), rle))
        for image, own in regions.items():
            yield Entry(masks.images[image]["file_name"], regions=tuple(own))

    return read


def read_refs(path: str) -> Any:
    """The lists, dictionaries, texts and numbers that a pickle holds.

    Raises:
        DataError: the pickle is broken, or asks for anything else, which could run code.
    """
    data = storage.read_bytes(path)
    try:
        return _PlainUnpickler(io.BytesIO(data), encoding="utf-8", errors="replace").load()
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle may fail in any way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise broken(path, f"not a whole pickle ({reason})") from None


_Unpickler: Any = pickle._Unpickler


class _PlainUnpickler(_Unpickler):
    """Python's own that is written in Python: the one in C makes a table of 34 GB where four bytes
    say so. Both end the process where a key is a tuple of tuples without end."""

    dispatch: ClassVar[dict[int, Any]] = dict(_Unpickler.dispatch)

    def _keyed(self, keys: list[Any], load: Callable[[Any], None]) -> None:
        if any(isinstance(key, tuple) for key in keys):
            raise pickle.UnpicklingError("a key is a tuple")
        load(self)

    def _setitem(self) -> None:
        self._keyed(self.stack[-2:-1], _Unpickler.load_setitem)

    def _setitems(self) -> None:
        self._keyed(self.stack[::2], _Unpickler.load_setitems)

    def _dict(self) -> None:
        self._keyed(self.stack[::2], _Unpickler.load_dict)

    def _set(self) -> None:
        raise pickle.UnpicklingError("there is a set in it")

    dispatch[pickle.SETITEM[0]] = _setitem
    dispatch[pickle.SETITEMS[0]] = _setitems
    dispatch[pickle.DICT[0]] = _dict
    dispatch[pickle.ADDITEMS[0]] = dispatch[pickle.FROZENSET[0]] = _set

    def find_class(self, module: str, name: str) -> Any:
        raise DataError(
            f"the pickle asks for {module}.{name}, a list of references does not; it may be "
            "malicious, so get it from its publishers"
        )


class _Masks:
    """Masks of COCO's instances by annotation."""

    def __init__(self, path: str) -> None:
        content = read_json(path)
        self._path = path
        self.images: dict[int, Any] = {}
        for where, image in items(f"{path}: images", field(path, content, "images", list)):
            for key, kind in (("file_name", str), ("height", int), ("width", int)):
                field(where, image, key, kind)
            self.images[field(where, image, "id", int)] = image
        self._annotations = {
            field(where, entry, "id", int): entry
            for where, entry in items(
                f"{path}: annotations", field(path, content, "annotations", list)
            )
        }

    def of(self, annotation: int, asked_by: str) -> tuple[int, dict[str, Any]]:
        """An annotation's image and its mask as run lengths."""
        entry = self._annotations.get(annotation)
        where = f"{self._path}: annotation {annotation}"
        if entry is None:
            raise DataError(f"{where}: missing, but {asked_by} is about it")
        number = field(where, entry, "image_id", int)
        image = self.images.get(number)
        if image is None:
            raise broken(where, f"no image {number}")
        shape = field(where, entry, "segmentation", (list, dict))
        if isinstance(shape, list):
            try:
                mask = polygons_to_mask(shape, image["height"], image["width"])
            except DataError as error:
                raise broken(where, f"'segmentation' is no list of polygons ({error})") from None
            return number, encode_rle(mask)
        counts = field(where, shape, "counts", (list, str))
        rle = {"size": field(where, shape, "size", list), "counts": counts}
        try:
            decode_rle(rle)
        except DataError as error:
            raise broken(where, str(error)) from None
        return number, rle


def _published(dataset: str, by: str, splits: dict[str, Counts]) -> PublishedSet:
    return PublishedSet(
        reader(dataset, by),
        splits,
        images=("images/mscoco/images/train2014", "images/train2014", "train2014"),
        source=f"https://github.com/lichengunc/refer ({dataset}.zip); images from "
        "https://cocodataset.org/#download (train2014.zip)",
        files=f"`{dataset}/refs({by}).p`, `{dataset}/instances.json`",
    )


REFCOCO = _published(
    "refcoco",
    "unc",
    {"val": Counts(1500, 10_834), "testA": Counts(750, 5657), "testB": Counts(750, 5095)},
)
REFCOCO_GOOGLE = _published("refcoco", "google", {"val": Counts(None), "test": Counts(None)})
REFCOCO_PLUS = _published(
    "refcoco+",
    "unc",
    {"val": Counts(1500, 10_758), "testA": Counts(750, 5726), "testB": Counts(750, 4889)},
)
REFCOCOG = _published("refcocog", "umd", {"val": Counts(1300, 4896), "test": Counts(2600, 9602)})
REFCOCOG_GOOGLE = _published("refcocog", "google", {"val": Counts(None, 9536)})
