"""Recipes by name: `train caft_b_3m` is `configs/train/caft_b_3m.yaml`, wherever the package lies.
Every command line that takes a configuration file finds it here."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from caft.config import RECIPES, Config, load_config
from caft.errors import ConfigError
from caft.overrides import argument

ConfigT = TypeVar("ConfigT", bound=Config)
ENDINGS = (".yaml", ".yml")


def load_recipe(schema: type[ConfigT], name: str | None, overrides: Sequence[str] = ()) -> ConfigT:
    """The configuration in a file or in a recipe of the schema's stage, with overrides.

    A schema with a `first_word` also takes what that key is to be in the place of a name.

    Raises:
        ConfigError: neither of these, or as `load_config`.
    """
    stage = schema.__module__.split(".")[1]
    if name is not None and (key := first_word(schema, name)):
        name, overrides = None, [argument(key, name), *overrides]
    return load_config(schema, None if name is None else recipe_file(stage, name), overrides)


def first_word(schema: type[Config], name: str) -> str | None:
    """The key that this first word of a command line is for; None of a file's or recipe's name, as
    it always is where the schema has no `first_word`."""
    key: str | None = getattr(schema, "first_word", None)
    stage = schema.__module__.split(".")[1]
    is_file = name.endswith(ENDINGS) or (is_recipe(name) and name in recipe_names(stage))
    return None if is_file else key


def is_recipe(name: str) -> bool:
    """Whether this is the name of a recipe rather than a path."""
    return "/" not in name and not name.endswith(ENDINGS) and not Path(name).exists()


def recipe_file(stage: str, name: str) -> str:
    """The path of what a command line calls `name`, which may be a path already.

    Raises:
        ConfigError: no recipe of the stage has this name.
    """
    if not is_recipe(name):
        return name
    known = recipe_names(stage)
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        raise ConfigError(
            f"{name}: neither a file nor a recipe of {stage}"
            + (f"; the nearest one is '{near[0]}'" if near else "")
            + "; `caft recipes` lists them"
        )
    return str(RECIPES / stage / f"{name}.yaml")


def recipe_names(stage: str) -> list[str]:
    return sorted(file.stem for file in (RECIPES / stage).glob("*.yaml"))


def list_recipes(stages: Sequence[str]) -> str:
    """A line for each recipe: its name and what its first line says."""
    lines = []
    for stage in stages:
        lines.append(f"{stage}:")
        for name in recipe_names(stage):
            first = (RECIPES / stage / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
            lines.append(f"  {name:24} {first.lstrip('# ') if first.startswith('#') else ''}")
    return "\n".join(lines)
