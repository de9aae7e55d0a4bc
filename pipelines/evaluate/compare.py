"""Compares finished evaluations: `python -m pipelines.evaluate compare RUN_OR_OUTPUT ...`.
Writes one page; scores nothing again, and needs neither models nor data nor a cluster."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from caft.config import load_config
from pipelines import storage, user_paths
from pipelines.config import StageConfig, command
from pipelines.evaluate.outputs import find_evaluations
from pipelines.evaluate.report.page import comparison_page

PAGE = "comparison.html"


def compare(names: Sequence[str], page: str, settings: StageConfig) -> str:
    """Write the page about the evaluations that `names` stand for, in their order.

    Args:
        names: outputs of the evaluate stage, or ids of its MLflow runs.
        page: a local or remote file.
        settings: where the runs are.

    Returns:
        where the page is.

    Raises:
        DataError: a name that stands for no finished evaluation.
        ConfigError: no such run in the experiment, or a relative path inside a Ray job.
        StorageError: a file that cannot be read, or the page that cannot be written.
    """
    page = user_paths.usable_path(page, "--page")
    found = [e for name in names for e in find_evaluations(name, settings.tracking)]
    storage.write_bytes(page, comparison_page(found).encode())
    return page


def main(argv: Sequence[str]) -> int:
    """The command line after `compare`; returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.evaluate compare")
    parser.add_argument(
        "evaluations", nargs="+", metavar="RUN_OR_OUTPUT", help="output folder, or MLflow run id"
    )
    parser.add_argument("--page", default=PAGE, help=f"where to write it (default: {PAGE} here)")
    parser.add_argument(
        "--tracking",
        nargs="*",
        default=[],
        metavar="key=value",
        help="where the runs are, such as uri=http://127.0.0.1:5000 experiment=mine",
    )
    args = parser.parse_args(argv)

    def call() -> int:
        settings = load_config(StageConfig, None, [f"tracking.{item}" for item in args.tracking])
        print(compare(args.evaluations, args.page, settings))
        return 0

    return command(call)
