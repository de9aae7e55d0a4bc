"""Whether what an output holds is what is asked for now: configurations compared key by key under
today's schema, and the content of what was read. The same for every stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from caft.config import Config, validate
from caft.documents import parse_yaml
from caft.errors import ConfigError
from caft.old_keys import completed
from pipelines import storage
from pipelines.behaviours import first_change

Difference = tuple[str, Any, Any]  # key, then, now


def difference(
    stored: Mapping[str, Any], asked: Config, free: Any, source: str
) -> Difference | None:
    """The first key in which a stored configuration differs from the one that is asked for.

    Args:
        stored: as an earlier command, maybe of an earlier version, stored it.
        free: what may differ, as pydantic's `exclude`.
        source: the stored file, for messages.

    Raises:
        ConfigError: the stored one does not fit today's schema.
    """
    then = validate(type(asked), completed(type(asked), stored), source)
    return first_difference(_plain(then, free), _plain(asked, free))


def first_difference(then: Any, now: Any, key: str = "") -> Difference | None:
    """The first key, dotted, whose value differs between two nested mappings or lists."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        pairs = _pairs(then, now)
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        pairs = ((str(n), *both) for n, both in enumerate(zip(then, now, strict=True)))
    else:
        return None if then == now else (key, then, now)
    for name, old, new in pairs:
        if found := first_difference(old, new, f"{key}.{name}" if key else name):
            return found
    return None


def require_same(
    output: str,
    holds: str,
    found: Difference | None,
    fix: str = "restore that value or choose another output",
) -> None:
    """Refuse an output of something else.

    Args:
        holds: what the output is, as in "a dataset".
        found: of `difference` or `first_difference`; None: all is the same.

    Raises:
        ConfigError: naming the first key that differs, its old and its new value.
    """
    if found is not None:
        key, then, now = found
        raise ConfigError(
            f"{key}: {output} holds {holds} made with {_shown(then)}, here it is {_shown(now)}; "
            f"{fix}"
        )


def require_same_config(output: str, holds: str, copy: str, asked: Config, free: Any) -> None:
    """Refuse an output whose stored configuration, the file `copy`, is another one.

    Raises:
        ConfigError: as `require_same`, or the file cannot be read.
    """
    stored = parse_yaml(storage.read_bytes(copy).decode(), copy, ConfigError) or {}
    require_same(output, holds, difference(stored, asked, free, copy))


def require_same_behaviour(output: str, holds: str, stored: Mapping[str, int], names: Any) -> None:
    """Refuse to add to an output that a version with other behaviour began.

    Raises:
        ConfigError: naming the behaviour.
    """
    if change := first_change(stored, names):
        raise ConfigError(
            f"output: {output} holds {holds} of another version: {change}, so continuing would "
            "mix both; finish it with that version or choose another output"
        )


def _plain(config: Config, free: Any) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude=free)


def _pairs(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in dict.fromkeys([*then, *now]):
        yield name, then.get(name), now.get(name)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
