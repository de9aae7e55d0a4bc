"""YAML and JSON that strangers may have written, parsed in bounded time and memory.
Every configuration and manifest passes through here; what fails is one CAFTError line."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from caft.errors import CAFTError
from caft.secrets import masked

MAX_BYTES = 4 * 2**20  # of a YAML file; the longest recipe has a few thousand
MAX_MANIFEST_BYTES = 64 * 2**20
MAX_DEPTH = 64  # of sections in sections
MAX_NODES = 50_000  # keys and values, each counted as often as aliases repeat it
MAX_NUMBER_CHARACTERS = 100
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml where PyYAML was built with it


def read_text(path: Path, error: type[CAFTError], most: int = MAX_BYTES) -> str:
    """The UTF-8 text of a file of at most `most` bytes. FileNotFoundError is the caller's."""
    try:
        with open(path, "rb") as stream:
            data = stream.read(most + 1)
        if len(data) > most:
            raise error(f"{path}: longer than {most / 2**20:.0f} MiB")
        return data.decode("utf-8")
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as reason:
        raise error(f"{path}: cannot be read: {reason}") from None


def parse_yaml(text: str, source: str, error: type[CAFTError]) -> Any:
    """The value of one YAML document.

    Raises:
        CAFTError: of the type `error`, naming `source`: not valid YAML, a key that a section has
            twice, sections more than 64 deep, or aliases and merge keys that multiply what is
            written to more than 50,000 keys and values.
    """
    try:
        _check(text)
        return yaml.load(text, _Loader)  # noqa: S506  (a safe loader)
    except _Refused as reason:
        raise error(f"{source}: {reason}") from None
    except RecursionError:  # no fault of this text: the caller is deep in files based on each other
        raise
    except Exception as reason:  # PyYAML lets through what int(), datetime and others raise
        shown = " ".join(str(reason).split())[:300] or type(reason).__name__
        if not isinstance(reason, yaml.YAMLError):
            shown = f"a value cannot be read as its type: {shown}"
        raise error(f"{source}: not valid YAML: {masked(shown)}") from None


def parse_json(text: str | bytes, source: str, error: type[CAFTError]) -> Any:
    """The value of a JSON text; raises `error` naming `source` where it is none."""
    try:
        return json.loads(text)
    except RecursionError:
        raise error(f"{source}: JSON that is nested too deeply") from None
    except ValueError as reason:
        raise error(f"{source}: not valid JSON: {str(reason)[:200]}") from None


class _Refused(Exception):
    """Valid YAML of a kind that no configuration needs."""


@dataclass
class _Section:
    """A mapping or sequence that has begun."""

    anchor: str | None
    mapping: bool
    nodes: int = 1
    depth: int = 1
    met: int = 0  # nodes directly in it: in a mapping every other one is a key
    keys: set[tuple[Any, str]] = field(default_factory=set)


def _check(text: str) -> None:
    """Read the events of a document, which costs no more than its length, before anything is built
    of them."""
    loader = _Loader(text)
    resolver = yaml.resolver.Resolver()
    finished: dict[str, tuple[int, int]] = {}  # nodes and depth of what an anchor names
    inside = [_Section(None, mapping=False)]
    try:
        while loader.check_event():
            event = loader.get_event()
            if isinstance(event, yaml.CollectionStartEvent):
                mapping = isinstance(event, yaml.MappingStartEvent)
                inside.append(_Section(event.anchor, mapping))
                nodes, depth = 0, 0  # counted at its end
            elif isinstance(event, yaml.CollectionEndEvent):
                ended = inside.pop()
                nodes, depth = ended.nodes, ended.depth
                if ended.anchor is not None:
                    finished[ended.anchor] = nodes, depth
            elif isinstance(event, yaml.ScalarEvent):
                nodes, depth = 1, 0
                if event.anchor is not None:
                    finished[event.anchor] = nodes, depth
            elif isinstance(event, yaml.AliasEvent):
                if any(section.anchor == event.anchor for section in inside):
                    raise _Refused(f"'*{event.anchor}' stands inside what it names")
                nodes, depth = finished.get(str(event.anchor), (1, 0))
            else:
                continue
            section = inside[-1]
            if isinstance(event, yaml.ScalarEvent):
                _check_scalar(section, event, resolver)
            if not isinstance(event, yaml.CollectionStartEvent):
                section.met += 1
                section.nodes += nodes
                section.depth = max(section.depth, 1 + depth)
            if len(inside) + depth > MAX_DEPTH + 1:
                raise _Refused(f"sections more than {MAX_DEPTH} deep")
            if sum(section.nodes for section in inside) > MAX_NODES:
                raise _Refused(
                    f"more than {MAX_NODES:,} keys and values, with those that aliases and merge "
                    "keys repeat"
                )
    finally:
        loader.dispose()


def _check_scalar(
    section: _Section, event: yaml.ScalarEvent, resolver: yaml.resolver.Resolver
) -> None:
    text = str(event.value)
    line = event.start_mark.line + 1 if event.start_mark else 0
    tag = event.tag or resolver.resolve(yaml.ScalarNode, text, event.implicit)
    if tag in NUMBERS and len(text) > MAX_NUMBER_CHARACTERS:
        raise _Refused(f"a number of {len(text):,} characters (line {line})")
    if section.mapping and section.met % 2 == 0:
        if (tag, text) in section.keys:
            raise _Refused(f"key '{text[:100]}' stands twice in a section (line {line})")
        section.keys.add((tag, text))
