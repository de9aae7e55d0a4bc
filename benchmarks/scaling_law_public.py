"""How often the 95% intervals of caft.scaling_law hold runs of public studies that it has not seen.

Takes isoflop.csv, chinchilla_245.csv and clip_mammut_imagenet_datacomp.csv (numbers of published
runs), and zeroshot_results.csv of the repository LAION-AI/scaling-laws-openclip. For each study and
cut, a law is fitted to the runs below the cut of compute and predicts those beyond: how many lie in
their intervals, the intervals' median width over the prediction, and the mean error.

    python benchmarks/scaling_law_public.py public_runs/ scaling_openclip/zeroshot_results.csv
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from caft.scaling_law import Band, Fit, choose_form, fit_form
from caft.scaling_law.form import Array
from caft.scaling_law.front import pareto_front
from caft.scaling_law.runs import NEAR_CHANCE

BUDGETS_OUT = (1, 2, 3)  # largest budgets of an isoFLOP study that are held out
SHARES = (0.6, 0.7, 0.8)  # of the range of log compute of a front, where it is cut
IMAGENET_CHANCE = 0.001
OPENCLIP = (("imagenet1k", "acc1"), ("mscoco_captions", "image_retrieval_recall@5"))
REPLICATES = 500


@dataclass(frozen=True)
class Cut:
    """What was predicted of the runs beyond one cut of a study."""

    study: str
    form: str
    cut: str
    fitted: int
    error: Array  # (m,) of the held-out runs
    band: Band

    @property
    def inside(self) -> int:
        return int(((self.band.low <= self.error) & (self.error <= self.band.high)).sum())

    @property
    def widths(self) -> Array:
        """(m,) in per cent of the prediction."""
        return 100 * (self.band.high - self.band.low) / self.band.value

    @property
    def misses(self) -> Array:
        """(m,) in per cent of what was measured."""
        return 100 * np.abs(self.band.value / self.error - 1)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def column(rows: list[dict[str, str]], name: str) -> Array:
    return np.array([float(row[name]) for row in rows])


def iso_flop(path: Path) -> Iterator[Cut]:
    """The law in size and samples of each study, without its largest budgets."""
    rows = read(path)
    for name in dict.fromkeys(row["experiment"] for row in rows):
        mine = [row for row in rows if row["experiment"] == name]
        inputs = {"parameters": column(mine, "params"), "samples": column(mine, "tokens")}
        budgets, error = column(mine, "budget"), column(mine, "loss")
        for out in BUDGETS_OUT:
            below = budgets < np.unique(budgets)[-out]
            label = f"{out} largest budget{'s' * (out > 1)}"
            yield in_size(name.split("__")[0], label, inputs, error, below)


def chinchilla(path: Path) -> Iterator[Cut]:
    """The runs that were read from a figure, misreadings included, without their largest fifths."""
    rows = read(path)
    inputs = {"parameters": column(rows, "parameters"), "samples": column(rows, "tokens")}
    compute = column(rows, "flop")
    for share in (0.6, 0.8):
        below = compute < np.quantile(compute, share)
        label = f"above the {100 * share:.0f}% smallest"
        yield in_size("chinchilla_245", label, inputs, column(rows, "loss"), below)


def in_size(
    study: str,
    label: str,
    inputs: Mapping[str, Array],
    error: Array,
    below: np.ndarray,
    ceiling: float | None = None,
) -> Cut:
    fit = fit_form(
        "size_samples", {key: values[below] for key, values in inputs.items()}, error[below],
        REPLICATES, ceiling=ceiling,
    )  # fmt: skip
    band = fit.predict({key: values[~below] for key, values in inputs.items()})
    return Cut(study, "size_samples", label, int(below.sum()), error[~below], band)


def fronts(study: str, compute: Array, error: Array, ceiling: float) -> Iterator[Cut]:
    """The law of the front that is chosen below each cut, and the front's runs beyond it."""
    learned = error <= NEAR_CHANCE * ceiling
    best = np.flatnonzero(learned)[pareto_front(compute[learned], error[learned])]
    compute, error = compute[best], error[best]
    logs = np.log(compute)
    for count in sorted({int((logs < logs[0] + share * np.ptp(logs)).sum()) for share in SHARES}):
        below = np.arange(len(logs)) < count
        choice = choose_form(
            ["power", "saturating"], {"compute": compute[below]}, error[below],
            replicates=REPLICATES, ceiling=ceiling,
        )  # fmt: skip
        band = choice.fit.predict({"compute": compute[~below]})
        label = f"{compute[-1] / compute[below].max():.3g} times the compute"
        yield Cut(study, choice.chosen, label, int(below.sum()), error[~below], band)


def clip_table(path: Path) -> Iterator[Cut]:
    rows = read(path)
    for family in dict.fromkeys(row["family"] for row in rows):
        mine = [row for row in rows if row["family"] == family]
        error = 1 - column(mine, "value")
        yield from fronts(family, column(mine, "gflops_total"), error, 1 - IMAGENET_CHANCE)


def clip_in_size(path: Path) -> Iterator[Cut]:
    """All runs of the table, those near chance too, in GFLOP of a sample and samples."""
    rows = read(path)
    for family in dict.fromkeys(row["family"] for row in rows):
        mine = [row for row in rows if row["family"] == family]
        inputs = {"parameters": column(mine, "gflops"), "samples": column(mine, "samples")}
        compute = column(mine, "gflops_total")
        logs = np.log(compute)
        for share in SHARES:
            below = logs < logs.min() + share * np.ptp(logs)
            label = f"{compute.max() / compute[below].max():.3g} times the compute"
            error = 1 - column(mine, "value")
            yield in_size(f"{family}, all runs", label, inputs, error, below, 1 - IMAGENET_CHANCE)


def openclip(path: Path) -> Iterator[Cut]:
    rows = read(path)
    for dataset, score in OPENCLIP:
        mine = [
            row
            for row in rows
            if row["downstream_dataset"] == dataset and "LAION" in row["upstream_dataset"]
        ]
        error = 1 - column(mine, score)
        yield from fronts(f"openclip {dataset}", column(mine, "gmacs_total"), error, 1.0)


def printed(cuts: Iterator[Cut]) -> list[Cut]:
    """All of them, each with its line of the table."""
    found = []
    for cut in cuts:
        found.append(cut)
        print(
            f"| {cut.study} | {cut.form} | {cut.cut} | {cut.fitted} | {cut.inside} of "
            f"{len(cut.error)} | {np.median(cut.widths):.1f}% | {cut.misses.mean():.1f}% |",
            flush=True,
        )
    return found


def print_total(label: str, cuts: list[Cut]) -> None:
    inside, runs = sum(cut.inside for cut in cuts), sum(len(cut.error) for cut in cuts)
    width = np.median(np.concatenate([cut.widths for cut in cuts]))
    misses = np.concatenate([cut.misses for cut in cuts]).mean()
    print(
        f"| **{label}** | | | | {inside} of {runs} ({100 * inside / runs:.0f}%) | {width:.1f}% | "
        f"{misses:.1f}% |"
    )


def outliers(path: Path) -> None:
    """The law of the 245 runs with and without the five known misreadings."""
    rows = read(path)
    print("\n| runs | parameter | value | 95% interval | published |\n|---|---|---|---|---|")
    clean = [row for row in rows if row["known_outlier"] != "true"]
    published = {"E": 1.8172, "A": 482.01, "a": 0.3478, "B": 2085.43, "b": 0.3658}
    for mine in (rows, clean):
        inputs = {"parameters": column(mine, "parameters"), "samples": column(mine, "tokens")}
        fit: Fit = fit_form("size_samples", inputs, column(mine, "loss"))
        for e in fit.estimates:
            interval = f"{e.low:.4g} to {e.high:.4g}"
            print(f"| {len(mine)} | {e.name} | {e.best:.4g} | {interval} | {published[e.name]:g} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, help="folder of the three tables of public runs")
    parser.add_argument("openclip", type=Path, help="zeroshot_results.csv")
    args = parser.parse_args()
    print("| study | law | held out | fitted | inside | median width | mean error |")
    print("|---|---|---|---|---|---|---|")
    table = args.runs / "clip_mammut_imagenet_datacomp.csv"
    clip = printed(clip_table(table))
    raw = printed(clip_in_size(table))
    iso = printed(iso_flop(args.runs / "isoflop.csv"))
    rest = [
        *printed(chinchilla(args.runs / "chinchilla_245.csv")),
        *printed(openclip(args.openclip)),
    ]
    two = [cut for cut in iso if cut.cut.startswith("2 ")]
    print_total("isoFLOP, 2 largest budgets", two)
    print_total("isoFLOP", iso)
    print_total("CLIP table, front", clip)
    print_total("CLIP table, all runs", raw)
    print_total("all", [*iso, *clip, *raw, *rest])
    outliers(args.runs / "chinchilla_245.csv")


if __name__ == "__main__":
    main()
