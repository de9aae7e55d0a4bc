"""Values that travel as text: `key.sub=value` read from a command line, and written for one.
Typed values are YAML; those that a program writes are JSON, which no reading changes."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from caft.documents import parse_yaml
from caft.errors import ConfigError
from caft.secrets import masked


def argument(key: str, value: Any) -> str:
    """`key=value` that `apply_override` reads back as exactly this value.

    Args:
        value: of plain JSON types.
    """
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set `key.sub` of nested sections and lists to a value that is JSON, or else YAML.

    Raises:
        ConfigError: no key, a place that is not there, or a value that YAML reads in part only.
    """
    key, equals, value = override.partition("=")
    shown = masked(" ".join(override[:200].split()))
    if not equals or not key:
        raise ConfigError(f"override '{shown}': write it as key=value or key.sub=value")
    node: Any = raw
    *parents, leaf = key.split(".")
    for parent in parents:
        if isinstance(node, dict):
            if isinstance(node.get(parent), str):  # `model: caft_b` says `model: {base: caft_b}`
                node[parent] = {"base": node[parent]}
            node = node.setdefault(parent, {})
        else:
            node = _item(node, parent, shown)
    parsed = _value(value, shown)
    if isinstance(node, dict):
        node[leaf] = parsed
    else:
        _item(node, leaf, shown)
        node[int(leaf)] = parsed


def _value(text: str, shown: str) -> Any:
    if text[:1] in ('"', "{", "[", "-", *string.digits):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            pass  # YAML says what is wrong with it
    parsed = parse_yaml(text, f"override '{shown}'", ConfigError)
    node = yaml.compose(text, yaml.SafeLoader)
    rest = text[node.end_mark.index if node else 0 :].strip()
    if rest.startswith("#"):
        raise ConfigError(
            f"override '{shown}': YAML takes '{masked(rest)}' for a comment and would leave it "
            "out; put the value into double quotes inside single ones, as in "
            "'output=\"/data/run #2\"'"
        )
    return parsed


def _item(node: Any, index: str, shown: str) -> Any:
    """An entry of a list section, as in `sources.0.path=...`."""
    if not isinstance(node, list):
        raise ConfigError(f"override '{shown}': what stands before '{index}' holds a value")
    if not index.isdigit() or int(index) >= len(node):
        raise ConfigError(f"override '{shown}': no entry '{index}' in a list of {len(node)}")
    return node[int(index)]


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the leaves of `changes` in place of its own; sections are merged."""
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


def leaves(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`key.sub` and value of everything in `section` that is no section itself."""
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
