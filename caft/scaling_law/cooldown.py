"""Checkpoints along a run at a constant learning rate as points of a law of runs cooled down.
A step of select_runs: a cool-down lowers errors by a factor, which runs that have both tell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caft.scaling_law.table import Row, line_list

FEWEST_PAIRS = 3


def as_cooled(
    rows: list[Row],
    errors: list[float],
    schedule: str,
    axes: Sequence[str],
    problems: list[str],
) -> tuple[list[Row], list[float]]:
    """Runs and errors with those of checkpoints that were not cooled down over the factor by which
    they are worse: the median of log error over pairs that differ in `schedule` alone, which has
    one value for cooled runs (the better one) and one for the others. Of a pair the cooled run
    counts; with fewer than three pairs the other runs are left out and named.

    Args:
        axes: columns that tell runs apart, but for the schedule and the run itself.
    """
    by_key: dict[tuple[str, ...], dict[str, int]] = {}
    for place, row in enumerate(rows):
        by_key.setdefault(tuple(row[name] for name in axes), {})[row[schedule]] = place
    kinds = sorted({row[schedule] for row in rows})
    pairs = [found for found in by_key.values() if len(found) == len(kinds)]
    if len(kinds) < 2:
        return rows, errors
    if len(kinds) > 2 or len(pairs) < FEWEST_PAIRS:
        most = max(kinds, key=lambda kind: sum(row[schedule] == kind for row in rows))
        others = [row for row in rows if row[schedule] != most]
        problems.append(
            f"{len(others)} runs whose {schedule} is not {most} are left out: fewer than "
            f"{FEWEST_PAIRS} runs have both, to tell by how much they differ: {line_list(others)}"
        )
        kept = [place for place, row in enumerate(rows) if row[schedule] == most]
        return [rows[place] for place in kept], [errors[place] for place in kept]
    one, other = kinds
    logs = [float(np.log(errors[pair[one]] / errors[pair[other]])) for pair in pairs]
    ratio = float(np.exp(np.median(logs)))
    cooled, factor = (other, ratio) if ratio > 1 else (one, 1 / ratio)
    kept = [
        place
        for found in by_key.values()
        for kind, place in found.items()
        if kind == cooled or cooled not in found
    ]
    kept.sort()
    count = sum(rows[place][schedule] != cooled for place in kept)
    problems.append(
        f"{count} runs whose {schedule} is not {cooled} count with their error over {factor:.3g}, "
        f"as {len(pairs)} runs that have both tell"
    )
    scaled = [errors[p] / (1.0 if rows[p][schedule] == cooled else factor) for p in kept]
    return [rows[place] for place in kept], scaled
