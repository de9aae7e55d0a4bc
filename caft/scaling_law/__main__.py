"""Command line of scaling laws: fits, compares and reports the runs of a CSV file.
Run as `python -m caft.scaling_law RUNS.csv --compute COLUMN --score COLUMN [--family COLUMN]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from caft.errors import CAFTError
from caft.scaling_law.fit import REPLICATES
from caft.scaling_law.forms import FORMS
from caft.scaling_law.report import table, write_report
from caft.scaling_law.runs import Columns, Target, read_table, select_runs
from caft.scaling_law.study import study_runs


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run it; a CAFTError is one line on stderr and exit code 2."""
    args = _parser().parse_args(argv)
    try:
        _run(args)
    except CAFTError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m caft.scaling_law", description=__doc__)
    parser.add_argument("runs", type=Path, help="CSV file with a header and a line for each run")
    parser.add_argument("--error", nargs="+", default=[], help="columns to explain: errors, losses")
    parser.add_argument(
        "--score", nargs="+", default=[], help="columns from 0 to 1 whose 1 - score to explain"
    )
    for name, text in (
        ("compute", "training compute, in any unit"),
        ("parameters", "of the model"),
        ("samples", "seen in training, repeats included"),
        ("unique-samples", "that the data hold"),
        ("family", "of models; each gets its laws, and they are compared"),
        ("group", "what shares chance: the seed, or the trunk of several cool-downs"),
        ("batch-size", "must be one where a loss is explained"),
    ):
        parser.add_argument(f"--{name}", metavar="COLUMN", help=text)
    parser.add_argument(
        "--budget", nargs="+", type=float, default=[], help="compute to predict and advise at"
    )
    parser.add_argument("--bins", type=int, default=5, help="of the envelope; 0: all runs (5)")
    parser.add_argument(
        "--forms", nargs="+", default=list(FORMS), help=f"to choose from ({', '.join(FORMS)})"
    )
    parser.add_argument(
        "--replicates", type=int, default=REPLICATES, help=f"for intervals ({REPLICATES})"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    return parser


def _run(args: argparse.Namespace) -> None:
    targets = [Target(column) for column in args.error]
    targets += [Target(column, is_score=True) for column in args.score]
    if not targets:
        raise CAFTError("nothing to explain: name columns by --error or --score")
    columns = Columns(**{name: getattr(args, name) for name in Columns.__dataclass_fields__})
    rows = read_table(args.runs)
    studies = []
    for target in targets:
        families = select_runs(rows, args.runs, target, columns)
        studies.append(
            study_runs(target.name, families, args.budget, args.bins, args.forms, args.replicates)
        )
        print(table(studies[-1]), end="\n\n", flush=True)
    used = {name: column for name, column in vars(columns).items() if column}
    facts = {
        "runs": f"{len(rows)} of {args.runs}",
        "columns": ", ".join(f"{name}: {column}" for name, column in used.items()),
        "envelope": f"best of {args.bins} equal intervals of log compute" if args.bins else "none",
        "intervals": f"95%, from {args.replicates} repetitions of the experiment",
    }
    paths = write_report(studies, facts, args.output)
    print("wrote " + ", ".join(map(str, paths)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
