"""How well the train stage's order of samples mixes a dataset, beside a perfect shuffle.

Arithmetic on the epoch plan alone: lanes read permuted row groups, and each shuffles within its
windows. Rows are numbered as they lie in the dataset, whose part files follow each other.

    python benchmarks/mixing.py [--rows 1000000]
"""

from __future__ import annotations

import argparse

import numpy as np

from pipelines.data.config import DataConfig
from pipelines.train.config import IngestConfig, TrainConfig
from pipelines.train.plan import EpochPlan, RowGroup

ROWS_PER_PART = 5_120
STATISTICS = (
    "rank correlation of place in dataset and in epoch",
    "mean steps between neighbours, of a perfect shuffle's",
    "neighbours in one batch",
    "largest share of a batch from one part file, mean",
    "row groups in a batch, mean",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    args = parser.parse_args()
    batch = TrainConfig.model_fields["global_batch"].default
    group = DataConfig.model_fields["row_group_rows"].default
    default = IngestConfig()
    settings = {
        "default": (default.lanes, default.window_steps),
        "windows of 1 step": (default.lanes, 1),
        "windows of 64 steps": (default.lanes, 64),
        "8 lanes": (8, default.window_steps),
        "256 lanes": (256, default.window_steps),
    }
    columns = {
        f"{name} ({lanes} x {steps})": plan_order(args.rows, group, batch, lanes, steps)
        for name, (lanes, steps) in settings.items()
    }
    used = args.rows // batch * batch
    columns["perfect shuffle"] = np.random.default_rng(0).permutation(args.rows)[:used]
    columns["no shuffle"] = np.arange(used)
    table = [measure(order, batch, group) for order in columns.values()]
    print(
        f"{args.rows:,} rows in row groups of {group} and part files of {ROWS_PER_PART:,}, "
        f"batches of {batch:,}\n"
    )
    print("| order (lanes x steps of a window) | " + " | ".join(STATISTICS) + " |")
    print("|---|" + "---|" * len(STATISTICS))
    for name, row in zip(columns, table, strict=True):
        print(f"| {name} | " + " | ".join(row) + " |")


def plan_order(rows: int, group: int, batch: int, lanes: int, window_steps: int) -> np.ndarray:
    """The rows of an epoch in the order of its steps."""
    groups = tuple(
        RowGroup(str(first), first, min(group, rows - first)) for first in range(0, rows, group)
    )
    plan = EpochPlan(groups, batch, lanes, window_steps, seed=0)
    order = np.empty((plan.steps_per_epoch, lanes, plan.rows_per_lane_step), dtype=np.int64)
    for lane in range(lanes):
        for window in plan.windows(0, lane):
            places = np.concatenate(
                [np.arange(p.start, p.stop) + p.row_group for p in window.pieces]
            )
            shuffled = places[np.random.default_rng(window.seed).permutation(len(places))]
            steps = slice(window.first_step, window.first_step + window.steps)
            order[steps, lane] = shuffled.reshape(window.steps, -1)
    return order.ravel()


def measure(order: np.ndarray, batch: int, group: int) -> list[str]:
    """One cell for each of `STATISTICS`."""
    steps = len(order) // batch
    step_of = np.full(order.max() + 1, -1)
    step_of[order] = np.arange(len(order)) // batch
    both = (step_of[:-1] >= 0) & (step_of[1:] >= 0)
    apart = np.abs(step_of[:-1] - step_of[1:])[both]
    batches = order.reshape(steps, batch)
    largest = [np.bincount(rows // ROWS_PER_PART).max() / batch for rows in batches]
    groups = [len(np.unique(rows // group)) for rows in batches]
    return [
        f"{np.corrcoef(order, np.arange(len(order)))[0, 1]:+.3f}",
        f"{apart.mean() / (steps / 3):.0%}",
        f"{(apart == 0).mean():.1%}",
        f"{np.mean(largest):.1%}",
        f"{np.mean(groups):,.0f}",
    ]


if __name__ == "__main__":
    main()
