"""Lists of images and their captions: which fields of a record say what.
The published sets of this kind are rows of the table in captions.py; own.py opens a user's list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pipelines.data.sources import cells
from pipelines.evaluate.sets.base import Entry, SetFolder, broken
from pipelines.evaluate.sets.records import Record, read_records, values_at


@dataclass(frozen=True)
class Listed:
    """The fields of a list's records, each a key or keys with dots between them."""

    image: str
    captions: tuple[tuple[str, ...], ...]  # of one caption the fields that make it up, as lines
    split: str = ""  # field that says the split; empty: all records are of it
    folder: str = ""  # field of the folder that the image is in, where a record has it
    ending: str = ""  # what the names of images lack
    most: int = 0  # captions of an image that count; 1: a field holds one text; 0: all
    records: str = ""  # where in a JSON object its list of records is

    @property
    def fields(self) -> tuple[str, ...]:
        captions = [name for group in self.captions for name in group]
        return tuple(dict.fromkeys([self.image, *captions, *([self.split] if self.split else [])]))

    def entries(
        self,
        records: Iterable[Record],
        splits: Collection[str] = (),
        seen: Counter[str] | None = None,
    ) -> Iterator[tuple[str, Entry]]:
        """The entries of records that are of the splits, and their places.

        Args:
            seen: counts the splits of all records.

        Raises:
            DataError: a field that is missing, empty or of another type; names place and field.
        """
        for where, record in records:
            if self.split:
                split = spelled(_single(where, record, self.split, (str, int, bool)))
                if seen is not None:
                    seen[split] += 1
                if split not in splits:
                    continue
            image = _single(where, record, self.image, (str,)).strip()
            if not image:
                raise broken(where, f"'{self.image}' is empty")
            if self.folder and (folder := record.get(self.folder)):
                image = f"{folder}/{image}"
            own: list[str] = []
            for fields in self.captions:
                own += self._caption(where, record, fields)
            yield where, Entry(f"{image}{self.ending}", tuple(own[: self.most or None]))

    def _caption(self, where: str, record: Any, fields: tuple[str, ...]) -> list[str]:
        """The captions in a field, or the one that several fields make up."""
        if len(fields) == 1:
            return self._texts(where, record, fields[0])
        parts = [self._texts(where, record, name) for name in fields]
        for name, texts in zip(fields, parts, strict=True):
            if len(texts) != 1:
                raise broken(where, f"'{name}' holds {len(texts)} captions, so nothing joins it")
        return ["\n".join(text for (text,) in parts)]

    def _texts(self, where: str, record: Any, name: str) -> list[str]:
        texts: list[str] = []
        for place, value in values_at(where, record, name):
            found = cells.spelled(value) if isinstance(value, str) else value
            for text in found if isinstance(found, list) and self.most != 1 else [value]:
                if not isinstance(text, str):
                    due = "str is due" if self.most == 1 else "str or a list of them is due"
                    raise broken(place, f"'{name}' is {type(text).__name__}, {due}")
                if not text.strip():
                    raise broken(place, f"'{name}' is empty")
                texts.append(text)
        if not texts:
            raise broken(where, f"'{name}' is empty")
        return texts


@dataclass(frozen=True)
class PublishedList(Listed):
    """A list as its publishers lay it out, in the first of some files that is there; or records
    that are put together from several files."""

    files: tuple[str, ...] = ()
    gather: Callable[[SetFolder, str], Iterator[Record]] | None = None

    def read(self, folder: SetFolder, split: str) -> Iterator[Entry]:
        """Entries of a split."""
        if self.gather:
            records = self.gather(folder, split)
        else:
            records = read_records(folder.path(*self.files), self.records, self.fields)
        for _, entry in self.entries(records, (split,)):
            yield entry


def spelled(value: Any) -> str:
    """A value as CSV and YAML spell it, so that `is: true` finds JSON's true."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _single(where: str, record: Any, name: str, kinds: tuple[type, ...]) -> Any:
    found = list(values_at(where, record, name))
    if len(found) != 1:
        raise broken(where, f"'{name}' has {len(found)} values, one is due")
    place, value = found[0]
    if not isinstance(value, kinds):
        due = " or ".join(kind.__name__ for kind in kinds)
        raise broken(place, f"'{name}' is {type(value).__name__}, {due} is due")
    return value
