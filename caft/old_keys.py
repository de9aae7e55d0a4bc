"""Configuration keys that earlier versions wrote: moved, removed, or not there yet.
Read by every schema, so that old files mean what they meant or are refused by the key."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel


@dataclass(frozen=True)
class Moved:
    """The key's value stands elsewhere now.

    Attributes:
        key: the new one, dotted, within the same section.
        read: the new key's value, from that of the old one.
    """

    key: str
    read: Callable[[Any], Any] = lambda value: value


@dataclass(frozen=True)
class Removed:
    """The key is gone; what it says now holds always.

    Attributes:
        value: what the old key is read as if it says so; anything else is refused.
    """

    value: Any


@dataclass(frozen=True)
class Idle:
    """The key is gone, and whatever it says changes nothing any more."""


@dataclass(frozen=True)
class Before:
    """In a field's annotation: what a stored configuration that lacks the key stands for, where
    that is not the field's default."""

    value: Any


# By the schema's name, then by the old key.
OLD_KEYS: Mapping[str, Mapping[str, Moved | Removed | Idle]] = {
    # Such crops kept the picture's shape.
    "IngestConfig": {
        "crop_min_scale": Moved("crop", lambda scale: {"min_scale": scale, "ratio": None})
    },
    # Intervals were made of so many resamples.
    "EvaluateConfig": {"bootstrap_samples": Idle()},
    # What a server had not got waited on each machine; now it is in the output.
    "TrackingConfig": {"spool": Idle()},
}


def renewed(schema: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    """A section's keys as today's schema names them.

    Raises:
        ValueError: a removed key with a value that no longer holds, or an old key beside the new.
    """
    result = dict(raw)
    for old, change in OLD_KEYS.get(schema, {}).items():
        if old not in result:
            continue
        value = result.pop(old)
        if isinstance(change, Idle):
            continue
        if isinstance(change, Removed):
            if value != change.value:
                raise ValueError(
                    f"{old}: this key was removed and {change.value!r} always holds, here it is "
                    f"{value!r}; leave it out"
                )
            continue
        *sections, leaf = change.key.split(".")
        node = result
        for section in sections:
            node[section] = dict(node.get(section) or {})
            node = node[section]
        if leaf in node:
            raise ValueError(f"{old}: is {change.key} now, and both are given; leave {old} out")
        node[leaf] = change.read(value)
    return result


def completed(schema: type[BaseModel], raw: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration with the keys that were not there yet, as what was done then."""
    result = renewed(schema.__name__, raw)
    for name, field in schema.model_fields.items():
        before = [mark.value for mark in field.metadata if isinstance(mark, Before)]
        if name not in result:
            if before:
                result[name] = before[0]
            continue
        value = result[name]
        for section in sections_of(field.annotation):
            if isinstance(value, Mapping) and _fits(section, value):
                result[name] = completed(section, value)
            elif isinstance(value, list):
                result[name] = [
                    completed(section, item)
                    if isinstance(item, Mapping) and _fits(section, item)
                    else item
                    for item in value
                ]
    return result


def sections_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """The schemas that values of an annotation, or items of such lists, may follow."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from sections_of(part)


def _fits(section: type[BaseModel], value: Mapping[str, Any]) -> bool:
    """Whether a mapping is of this schema: no key of it is unknown there."""
    old = OLD_KEYS.get(section.__name__, {})
    return all(key in section.model_fields or key in old for key in value)
