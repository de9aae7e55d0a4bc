"""Command line of scaling laws: fits, compares and reports the runs of a table.
Run as `python -m caft.scaling_law RUNS.csv --compute COLUMN --score COLUMN [--family COLUMN]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from caft.errors import CAFTError, DataError
from caft.extras import command_needs

with command_needs("pipelines", "caft.scaling_law"):
    from caft.scaling_law.fit import REPLICATES
    from caft.scaling_law.forms import CHOSEN_FROM, FORMS
    from caft.scaling_law.report import table, write_report
    from caft.scaling_law.runs import INPUTS, Columns, Target, select_runs
    from caft.scaling_law.study import study_runs
    from caft.scaling_law.table import keep_rows, read_table


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
    parser.add_argument("runs", type=Path, help="CSV (also .csv.gz) or Parquet file")
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
        ("schedule", "cooled down or not: checkpoints along a run count as points too"),
        ("loss", "errors are also predicted through it, in two stages"),
    ):
        parser.add_argument(f"--{name}", metavar="COLUMN", help=text)
    parser.add_argument(
        "--best-over", nargs="+", default=[], metavar="COLUMN",
        help="as the learning rate: of runs that differ in these alone, the best counts",
    )  # fmt: skip
    parser.add_argument("--where", metavar="CONDITION", help="as 'family == \"clip\" and lr < 1'")
    parser.add_argument(
        "--test-size", metavar="N", help="images or queries behind a score: a number or a column"
    )
    parser.add_argument("--chance", type=float, help="score of guessing (0, or k / N of a recall)")
    parser.add_argument(
        "--units", nargs="+", default=[], metavar="INPUT=UNIT", help="as compute=GFLOP"
    )
    parser.add_argument(
        "--budget", nargs="+", type=float, default=[], help="compute to predict and advise at"
    )
    parser.add_argument(
        "--bins", type=int, help="of compute, whose best runs are fitted; 0: all runs (the front)"
    )
    parser.add_argument(
        "--forms", nargs="+", default=list(CHOSEN_FROM), help=f"to choose from ({', '.join(FORMS)})"
    )
    parser.add_argument(
        "--replicates", type=int, default=REPLICATES, help=f"for intervals ({REPLICATES})"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    return parser


def _run(args: argparse.Namespace) -> None:
    about = {"chance": args.chance, "test_size": args.test_size}
    targets = [Target(column, False, **about) for column in args.error]
    targets += [Target(column, True, **about) for column in args.score]
    if not targets:
        raise CAFTError("nothing to explain: name columns by --error or --score")
    if args.chance is not None and not 0 <= args.chance < 1:
        raise CAFTError(f"--chance {args.chance:g}: the score of guessing is from 0 to below 1")
    named = {
        name: getattr(args, name) for name in Columns.__dataclass_fields__ if hasattr(args, name)
    }
    columns = Columns(**{**named, "best_over": tuple(args.best_over)})
    units = _units(args.units)
    table_rows = read_table(args.runs)
    rows = keep_rows(table_rows, args.where, args.runs) if args.where else table_rows
    studies, failed, without = [], [], []
    for target in targets:
        try:
            families = select_runs(rows, args.runs, target, columns)
        except DataError as error:  # of this target's cells: the others are reported all the same
            failed.append(error)
            continue
        asked = (target.name, families, args.budget, args.bins, args.forms, args.replicates)
        try:
            studies.append(study_runs(*asked))
        except DataError as error:
            without.append(f"{target.name}: no law: {error}")
            continue
        print(table(studies[-1]), end="\n\n", flush=True)
    if not studies:
        raise failed[0] if failed else DataError("; ".join(without))
    for reason in without:
        print(reason, end="\n\n", flush=True)
    used = {name: column for name, column in named.items() if column and name != "best_over"}
    bins = {None: "all runs that no run of as little compute equals", 0: "all runs"}
    facts = {
        "runs": f"{len(rows)} of {len(table_rows)} in {args.runs}",
        "columns": ", ".join(
            f"{name}: {column}{units.get(name, '')}" for name, column in used.items()
        ),
        "front": bins.get(args.bins, f"best of {args.bins} equal intervals of log compute"),
        "intervals": f"95%, from {args.replicates} repetitions of the experiment",
    }
    if without:
        facts["left out"] = "; ".join(without)
    paths = write_report(studies, facts, args.output)
    print("wrote " + ", ".join(map(str, paths)), flush=True)
    if failed:
        raise failed[0]


def _units(given: list[str]) -> dict[str, str]:
    """What to write behind an input's column."""
    units = {}
    for text in given:
        name, _, unit = text.partition("=")
        if name not in INPUTS or not unit:
            raise CAFTError(f"--units {text}: write INPUT=UNIT, of {', '.join(INPUTS)}")
        units[name] = f" in {unit}"
    return units


if __name__ == "__main__":
    sys.exit(main())
