"""What an optional package comes with, in words that work here: in a checkout or with a wheel.
Used where such a package is missing, instead of a traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DISTRIBUTION = "caft-image-text"  # on the package index `caft` is another project
CHECKOUT = Path(__file__).resolve().parents[1]


def how_to_install(extra: str) -> str:
    """The command that installs an extra of this project."""
    if (CHECKOUT / "pyproject.toml").exists():
        return f"pip install -e '.[{extra}]' -c constraints.txt"
    return f"pip install '{DISTRIBUTION}[{extra}]'"


@contextmanager
def command_needs(extra: str, command: str) -> Iterator[None]:
    """A command's imports, or its run: a package that is not installed is one line, exit code 2."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("", "caft", "pipelines"):
            raise
        print(
            f"{command}: the package {error.name} is not installed; {how_to_install(extra)}",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
