"""What a run says of itself: its name, its description, who started it and from which code.
Given by stages when they start a run (tracker.py); send.py fills in the links."""

from __future__ import annotations

import getpass
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from caft import __version__
from caft.secrets import masked
from pipelines import git, user_paths

USER = "CAFT_USER"  # who submitted a job, which runs as another user
LONGEST_NAME = 60  # characters of a part of a run's name


@dataclass(frozen=True)
class About:
    """A run in words.

    Attributes:
        subject: what sets it apart from other runs of the stage, such as model and dataset.
        what: one sentence of what it does.
        output: folder of its results, or None.
        report: the page that shows them, or None.
    """

    stage: str
    subject: str
    what: str
    output: str | None = None
    report: str | None = None

    @property
    def name(self) -> str:
        """Without the stage: `caft_b 3m (run1)`."""
        place = f"({last_part(self.output)})" if self.output else ""
        return " ".join(filter(None, (shortened_name(self.subject), place)))

    def tags(self) -> dict[str, str]:
        """MLflow's own tags for its columns, and ours."""
        module, in_job = main_module(), user_paths.in_ray_job()
        known = os.environ.get(git.REVISION) or git.revision(Path(__file__).parent)
        tags = {
            "stage": self.stage,
            "caft_version": __version__,
            "git_revision": known or "unknown",
            "mlflow.user": os.environ.get(USER) or getpass.getuser(),
            "mlflow.source.name": module or Path(sys.argv[0]).name,
            "mlflow.source.type": "JOB" if in_job else "LOCAL",
        }
        if known:
            tags["mlflow.source.git.commit"] = known.removesuffix("+")
        return tags

    def description(self) -> list[str]:
        """Markdown lines; `send.py` adds the runs that this one builds on."""
        lines = [self.what, ""]
        if self.output:
            lines.append(f"- output: `{masked(self.output)}`")
        if self.report:
            lines.append(f"- report: `{masked(self.report)}`")
        return [*lines, "", "The command that repeats it:", "", "```", command(), "```"]


def description_with_links(
    lines: Sequence[str], links: Mapping[str, str], instead_of: str | None
) -> str:
    """The description with lines of links, stage -> Markdown, and of the run that this one was made
    in place of, after the sentence."""
    start, rest = list(lines[:2]), list(lines[2:])
    if links:
        start.append(f"- built on: {', '.join(f'{name} {link}' for name, link in links.items())}")
    if instead_of:
        start.append(f"- in place of: `{instead_of}`")
    return "\n".join([*start, *rest])


def command() -> str:
    """This process's command line, which repeats it; secrets are masked."""
    module = main_module()
    program = f"python -m {module}" if module else Path(sys.argv[0]).name
    return masked(f"{program} {shlex.join(sys.argv[1:])}".strip())


def main_module() -> str | None:
    """The module that `python -m` runs; None of any other program."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name.removesuffix(".__main__") if spec else None


def last_part(path: str) -> str:
    """Of a path or an address."""
    return path.rstrip("/").rsplit("/", 1)[-1]


def shortened_name(text: str) -> str:
    """One line of at most LONGEST_NAME characters."""
    line = re.sub(r"\s+", " ", text).strip()
    return line if len(line) <= LONGEST_NAME else f"{line[: LONGEST_NAME - 3]}..."
