"""The laws of a study that has run: from runs.csv to fit.json, fit.csv and a page.
Last step of the sweep stage; the mathematics is caft.scaling_law's, usable on any table."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from caft.errors import DataError
from caft.scaling_law.report import table, write_report
from caft.scaling_law.runs import Columns, Target, read_table, select_runs
from caft.scaling_law.study import Study, study_runs
from pipelines import storage
from pipelines.sweep.config import SweepConfig
from pipelines.sweep.plan import table_csv

FIT = "fit"
# Of points that differ in their learning rate alone, one has a part in a law.
AXES = frozenset({"family", "size", "samples", "unique_samples", "global_batch", "seed"})
COLUMNS = Columns(
    compute="compute",
    parameters="parameters",
    samples="samples",
    unique_samples="unique_samples",
    family="family",
    group="trunk",
    batch_size="global_batch",
)


def fit_laws(config: SweepConfig, rows: Sequence[dict[str, Any]]) -> str:
    """Fit a law to each target; writes them below the output, and returns what to print.

    Args:
        rows: as `collect` gives them, one for each point that is done.

    Raises:
        DataError: no target has a law.
    """
    studies, reasons = [], []
    with tempfile.TemporaryDirectory(prefix="caft-fit-") as folder:
        for target in config.targets:
            used, lines = usable(rows, target)
            reasons += lines
            path = Path(folder, "runs.csv")
            path.write_text(table_csv(used, list(used[0]) if used else []), encoding="utf-8")
            try:
                studies.append(_study(config, target, path))
            except DataError as error:
                reasons.append(f"{target}: {str(error).replace(str(path), 'runs.csv')}")
        if not studies:
            raise DataError(f"{config.output}: no law: {'; '.join(reasons)}")
        facts = {"study": config.output, "runs": f"{len(rows)} points"}
        if reasons:
            facts["left out"] = "; ".join(reasons)
        for path in write_report(studies, facts, Path(folder)):
            storage.write_bytes(storage.join(config.output, FIT, path.name), path.read_bytes())
    return "\n\n".join([*map(table, studies), *reasons])


def _study(config: SweepConfig, target: str, path: Path) -> Study:
    families = select_runs(read_table(path), path, Target(target), COLUMNS)
    fit = config.fit
    return study_runs(target, families, fit.budgets, fit.bins, fit.forms, fit.replicates)


def usable(rows: Sequence[dict[str, Any]], target: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The points that a law of `target` is fitted to, and why others are not: learning rates that
    were not the best of their point, and errors of zero, which have no logarithm."""
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = tuple(v for name, v in row.items() if name in AXES)
        if key not in best or row[target] < best[key][target]:
            best[key] = row
    kept = [row for row in best.values() if not row[target] <= 0]
    reasons = []
    if len(best) < len(rows):
        reasons.append(f"{target}: {len(rows) - len(best)} points with a worse learning rate")
    if len(kept) < len(best):
        reasons.append(f"{target}: {len(best) - len(kept)} points without a single error")
    return kept, reasons
