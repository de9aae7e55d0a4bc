"""The laws of a study that has run: from runs.csv to fit.json, fit.csv and a page.
Last step of the sweep stage; the mathematics is caft.scaling_law's, usable on any table."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from caft.errors import DataError
from caft.scaling_law.report import table, write_report
from caft.scaling_law.runs import Columns, Target, select_runs
from caft.scaling_law.study import study_runs
from caft.scaling_law.table import read_table
from pipelines import storage
from pipelines.sweep.config import SweepConfig
from pipelines.sweep.plan import table_csv

FIT = "fit"
COLUMNS = Columns(
    compute="compute",
    parameters="parameters",
    samples="samples",
    unique_samples="unique_samples",
    family="family",
    group="trunk",
    batch_size="global_batch",
    # Of points that differ in their learning rate alone, one has a part in a law. A trunk is named
    # by its rate too, so what tells points apart is given one by one.
    best_over=("lr",),
    apart=("size", "seed"),
)


def fit_laws(config: SweepConfig, rows: Sequence[dict[str, Any]]) -> str:
    """Fit a law to each target; writes them below the output, and returns what to print.

    A target that too few points are there for has one line instead.

    Args:
        rows: as `collect` gives them, one for each point that is done.
    """
    studies, reasons = [], []
    with tempfile.TemporaryDirectory(prefix="caft-fit-") as folder:
        path = Path(folder, "runs.csv")
        path.write_text(table_csv(rows, list(rows[0])), encoding="utf-8")
        runs, fit = read_table(path), config.fit
        columns = replace(COLUMNS, loss=_loss(config, rows))
        for name in config.targets:
            size = None if fit.test_size is None else str(fit.test_size)
            target = Target(name, chance=fit.chance, test_size=size)
            try:
                families = select_runs(runs, path, target, columns)
                studies.append(
                    study_runs(name, families, fit.budgets, fit.bins, fit.forms, fit.replicates)
                )
            except DataError as error:
                reasons.append(f"{name}: no law: {str(error).replace(str(path), 'runs.csv')}")
        if studies:
            facts = {"study": config.output, "runs": f"{len(rows)} points"}
            if reasons:
                facts["left out"] = "; ".join(reasons)
            for written in write_report(studies, facts, Path(folder)):
                place = storage.join(config.output, FIT, written.name)
                storage.write_bytes(place, written.read_bytes())
    return "\n\n".join([*map(table, studies), *reasons])


def _loss(config: SweepConfig, rows: Sequence[dict[str, Any]]) -> str | None:
    """The first target that is a loss, through which the others are predicted too; None where
    several batch sizes, on which a loss depends, were trained."""
    losses = [name for name in config.targets if Target(name).is_loss]
    one_batch = len({row["global_batch"] for row in rows}) == 1
    return losses[0] if losses and one_batch else None
