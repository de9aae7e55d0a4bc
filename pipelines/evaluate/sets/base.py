"""What a published set is, and the folder it was unpacked into.
Readers of the single sets yield entries from here; opening.py makes benchmarks of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from caft.errors import DataError
from pipelines import storage
from pipelines.data.sources import paths
from pipelines.evaluate.benchmark import Region

FETCH_AGAIN = "; fetch the file again"


@dataclass(frozen=True)
class Entry:
    """One image of a set and what is said of it."""

    image: str  # path below one of the set's image folders
    captions: tuple[str, ...] = ()
    regions: tuple[Region, ...] = ()
    label_map: str | None = None  # path below the set's folder


@dataclass(frozen=True)
class Counts:
    """What the publishers say a split holds; `texts` is None where they do not say."""

    images: int | None
    texts: int | None = None  # captions, or sentences about regions


@dataclass(frozen=True)
class PublishedSet:
    """A set as it is published: how its files are read, and how many entries they must give."""

    read: Callable[[SetFolder, str], Iterator[Entry]]  # of a split, images in a fixed order
    splits: Mapping[str, Counts]  # the first is the one that papers report
    images: tuple[str, ...]  # image folders below the set's folder, "" for itself
    source: str  # where to get it
    files: str  # what is read of it, in Markdown
    classes: Callable[[SetFolder], tuple[str, ...]] | None = None  # of values 1, 2, ... in maps


class SetFolder:
    """The folder that a set was unpacked into."""

    def __init__(self, root: str) -> None:
        self.root = root

    def path(self, *names: str) -> str:
        """The first of some names that is there, below the folder.

        Raises:
            DataError: none is.
        """
        for name in names:
            path = storage.join(self.root, name)
            if storage.exists(path):
                return path
        places = " nor ".join(names)
        raise DataError(f"{self.root}: has no {places}")


def read_text(path: str) -> str:
    """A file's text, uncompressed by its name; raises DataError where it is no UTF-8."""
    try:
        with paths.open_stream(path) as stream:
            pieces = iter(lambda: stream.read(paths.HEAD_BYTES), b"")
            return b"".join(pieces).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise broken(path, f"not UTF-8 ({error.reason} at byte {error.start})") from None


def read_json(path: str) -> Any:
    """What a JSON file holds; raises DataError where it is none."""
    return parse_json(path, read_text(path))


def json_lines(path: str) -> Iterator[tuple[str, Any]]:
    """Where each line of a JSON Lines file stands, for messages, and what it holds."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            where = f"{path}: line {number}"
            yield where, parse_json(where, line)


def parse_json(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise broken(where, f"not valid JSON ({error})") from None


def broken(where: str, what: str) -> DataError:
    return DataError(f"{where}: {what}{FETCH_AGAIN}")


def field(where: str, entry: Any, key: str, kind: type | tuple[type, ...]) -> Any:
    """A field of an object.

    Raises:
        DataError: no object, no such field, or one of another type.
    """
    if not isinstance(entry, Mapping):
        raise broken(where, f"an object is due, got {type(entry).__name__}")
    if key not in entry:
        raise broken(where, f"no '{key}'")
    value = entry[key]
    if not isinstance(value, kind):
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise broken(where, f"'{key}' is {type(value).__name__}, {names} is due")
    return value


def items(where: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Where each item of a list stands, and the item.

    Raises:
        DataError: not a list.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise broken(where, f"a list is due, got {type(value).__name__}")
    for number, item in enumerate(value):
        yield f"{where}: entry {number}", item
