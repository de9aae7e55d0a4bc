"""The command `caft`: every stage and tool under one name, in the order in which they are used.
`caft train ...` is `python -m pipelines.train ...`, with the same arguments."""

from __future__ import annotations

import difflib
import runpy
import sys
from collections.abc import Sequence
from typing import NamedTuple

from caft import __version__
from caft.extras import command_needs


class Command(NamedTuple):
    """The module that does it, the words that go before the arguments, and what it does."""

    module: str
    words: tuple[str, ...]
    text: str


COMMANDS = {
    "data": Command("pipelines.data", (), "lists of URLs or images to a dataset"),
    "train": Command("pipelines.train", (), "a dataset to a model"),
    "evaluate": Command("pipelines.evaluate", (), "a model to scores and a report"),
    "embed": Command("pipelines.embed", (), "images to embeddings, for search"),
    "sweep": Command("pipelines.sweep", (), "a scaling study: plan, run, fit"),
    "submit": Command("pipelines.submit", (), "any of these, or a chain of them, as a Ray job"),
    "search": Command("pipelines.search", (), "embedded images by a caption or an image"),
    "export": Command("caft.checkpoint", ("export",), "a checkpoint as a folder to publish"),
    "describe": Command("caft.model", ("describe",), "what a model costs"),
    "recipes": Command("", (), "the recipes that stages know by name"),
    "demo": Command("pipelines.demo.page", (), "a page: where sentences of yours look in an image"),
}
STAGES = ("data", "train", "evaluate", "embed", "sweep")


def main(argv: Sequence[str] | None = None) -> int:
    """Do what a command line asks for; returns the exit code, 2 after one line of error."""
    name, *rest = sys.argv[1:] if argv is None else argv or ["--help"]
    if name in ("-h", "--help", "help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"caft {__version__}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        meant = f"; the nearest one is '{near[0]}'" if near else ""
        print(f"caft: no command '{name}'{meant}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    if name == "recipes":
        from pipelines.recipes import list_recipes

        print(list_recipes(STAGES))
        return 0
    command = COMMANDS[name]
    sys.argv = [f"caft {name}", *command.words, *rest]
    # As `python -m` runs it, so that what is sent to other processes is found there alike.
    with command_needs("pipelines", f"caft {name}"):
        runpy.run_module(command.module, run_name="__main__", alter_sys=True)
    return 0


def _help() -> str:
    lines = [f"  {name:10} {command.text}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: caft COMMAND ...",
            "",
            *lines,
            "",
            "`caft COMMAND --help` shows a command's arguments. A stage takes a recipe's name or a "
            "YAML file,",
            "and key=value: caft train caft_b_3m dataset=s3://bucket/set output=s3://bucket/run",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
