"""Small pieces of text from lists: made fit to be stored, and shortened to be shown.
Used by every reader that parses values one by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

SHOWN_CHARS = 200
Item = TypeVar("Item")


def clean(text: str) -> str:
    """`text` with half surrogate pairs, which JSON can spell and Parquet cannot hold, replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def clean_texts(value: Any) -> list[str]:
    """The texts that a value or a list of values holds, stripped; empty ones are left out."""
    values = value if isinstance(value, list) else [value]
    return [clean(item.strip()) for item in values if isinstance(item, str) and item.strip()]


def shorten(text: str) -> str:
    """A piece of a list as a detail shows it."""
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."


def in_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
