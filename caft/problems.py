"""What a schema found wrong in a configuration, in words: the key and its value, or the known key
that is nearest. Called by config.py, which adds the file."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from caft.old_keys import OLD_KEYS, sections_of
from caft.secrets import is_secret_name, masked

SECTION_TYPES = ("model_type", "dict_type", "model_attributes_type", "dataclass_type")
# A few lines of YAML can spell a value of many gigabytes by aliases of aliases.
SHOWN = reprlib.Repr()
SHOWN.maxlevel, SHOWN.maxstring, SHOWN.maxother = 2, 200, 200


def described(problem: Mapping[str, Any], schema: type[BaseModel]) -> str:
    """One of pydantic's findings on a configuration of `schema`, as `key: what is wrong`."""
    keys = [str(part) for part in problem["loc"] if " " not in str(part)]  # no union's tag
    key = ".".join(keys) or "(top level)"
    if problem["type"] == "extra_forbidden":
        known = {name for section in _sections_at(schema, keys[:-1]) for name in _names(section)}
        near = difflib.get_close_matches(keys[-1], sorted(known), 1)
        return f"{key}: unknown key" + (f"; the nearest one is '{near[0]}'" if near else "")
    message = problem["msg"].removeprefix("Value error, ")
    value = problem.get("input")
    # What stands in the place of a section, or under a secret's name, may itself be a secret.
    of_section = isinstance(value, dict) or problem["type"] in SECTION_TYPES
    if of_section or problem["type"] == "missing" or is_secret_name(keys[-1] if keys else ""):
        return f"{key}: {masked(message)}"
    return masked(f"{key}: {message} (got {SHOWN.repr(value)})")


def _sections_at(schema: type[BaseModel], keys: list[str]) -> list[type[BaseModel]]:
    sections = [schema]
    for key in keys:
        if key.isdigit():
            continue  # a place in a list, whose items follow the same schemas
        fields = [section.model_fields[key] for section in sections if key in section.model_fields]
        sections = [part for field in fields for part in sections_of(field.annotation)]
    return sections


def _names(section: type[BaseModel]) -> set[str]:
    known = {field.alias or name for name, field in section.model_fields.items()}
    return known - set(OLD_KEYS.get(section.__name__, {}))
