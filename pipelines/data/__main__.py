"""Command line of the data stage: builds a dataset, most often as a Ray job, and looks after it.
Run as `python -m pipelines.data CONFIG [key=value ...]`, or with one of the commands below."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import islice

from pipelines import user_paths
from pipelines.config import command, stage_main
from pipelines.data.config import DataConfig
from pipelines.data.stage import run
from pipelines.ownership import owned

COMMANDS = ("retry", "verify", "stats", "estimate", "export")


def main(argv: Sequence[str]) -> int:
    if not argv or argv[0] not in COMMANDS:
        return stage_main(DataConfig, run, list(argv))
    args = _parser().parse_args(_options_first(argv))
    return command(lambda: args.call(args))


def _options_first(argv: Sequence[str]) -> list[str]:
    """The words of a command with its options, each of which takes a value, before the others:
    argparse takes no key=value behind an option that follows a first argument."""
    options, others, words = [], [], iter(argv[1:])
    for word in words:
        if not word.startswith("-"):
            others.append(word)
        elif "=" in word:
            options.append(word)
        else:
            options += [word, *islice(words, 1)]
    return [argv[0], *options, *others]


def _retry(args: argparse.Namespace) -> int:
    from pipelines.data.retry import retry

    dataset = user_paths.usable_path(args.dataset, "dataset", folder=True)
    with owned(dataset, "data retry"):
        retry(dataset, args.reason.split(","), args.overrides)
    return 0


def _verify(args: argparse.Namespace) -> int:
    from pipelines.data.verify import verify

    problems = verify(args.dataset)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{args.dataset}: {len(problems)} problems" if problems else f"{args.dataset}: whole")
    return 1 if problems else 0


def _stats(args: argparse.Namespace) -> int:
    from pipelines.data.stats import write_stats

    print(write_stats(args.dataset, args.page))
    return 0


def _estimate(args: argparse.Namespace) -> int:
    from pipelines.data.estimate import estimate

    print(
        estimate(
            args.config,
            args.overrides,
            args.rows,
            json_file=args.json,
            dollars_per_core_hour=args.dollars_per_core_hour,
        )
    )
    return 0


def _export(args: argparse.Namespace) -> int:
    from pipelines.data.export import export

    sizes = export(args.dataset, args.to, args.overrides)
    print(f"data: exported {sum(sizes.values()):,} rows in {len(sizes):,} files")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines.data", description=__doc__)
    commands = parser.add_subparsers(required=True)

    retry = commands.add_parser("retry", help="try rejected rows of a finished dataset again")
    retry.add_argument("dataset")
    retry.add_argument("--reason", required=True, help="such as timeout,dns,http_5xx")
    retry.add_argument("overrides", nargs="*", metavar="download.key=value")
    retry.set_defaults(call=_retry)

    verify = commands.add_parser("verify", help="check every file, row and count again")
    verify.add_argument("dataset")
    verify.set_defaults(call=_verify)

    stats = commands.add_parser("stats", help="write a page about what was kept and rejected")
    stats.add_argument("dataset")
    stats.add_argument("--page", help="where to write it; else stats.html in the dataset's folder")
    stats.set_defaults(call=_stats)

    estimate = commands.add_parser("estimate", help="probe a sample, predict the whole")
    estimate.add_argument("config")
    estimate.add_argument("overrides", nargs="*", metavar="key=value")
    estimate.add_argument("--rows", type=_positive, default=2000, help="of the sample")
    estimate.add_argument("--json", metavar="FILE", help="write the numbers there, too")
    estimate.add_argument("--dollars-per-core-hour", type=float, help="your price; adds a cost")
    estimate.set_defaults(call=_estimate)

    export = commands.add_parser("export", help="write a finished dataset in another form")
    export.add_argument("dataset")
    export.add_argument("--to", required=True, choices=("webdataset", "huggingface"))
    export.add_argument("overrides", nargs="*", metavar="output=FOLDER")
    export.set_defaults(call=_export)
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of rows above 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
