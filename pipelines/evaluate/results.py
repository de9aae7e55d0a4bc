"""The numbers of one benchmark, and the tables that show them.
Between features and everything that reports: MLflow, metrics.json, metrics.csv, report, log."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch

from caft.metrics import Estimate, interval
from caft.metrics.classification import class_features, classification_scores
from caft.metrics.retrieval import RECALL_AT, recalls
from caft.retrieval import Ranking, ScoreKind
from caft.scoring import Scorer, kind_names
from pipelines.evaluate.benchmark import Benchmark
from pipelines.evaluate.controls import Group, recalls_by_length, variants
from pipelines.evaluate.embed import MEASURED, Encoder
from pipelines.evaluate.features import StoredFeatures
from pipelines.evaluate.items import (
    AS_WRITTEN,
    CLASSES,
    Tables,
    class_items,
    control_differences,
    estimates,
    ranked_items,
)
from pipelines.evaluate.scoring import Ranker

SCORES, WAYS = ("whole", "part", "blended", "rerank"), ("t2i", "i2t")
CSV_COLUMNS = ("model", "step", "benchmark", "captions", "score", "metric", "value", "low", "high")


@dataclass(frozen=True)
class BenchmarkResults:
    """What one model does on one benchmark; recalls are fractions."""

    metrics: dict[str, float]  # blended_t2i_r1, ..., images, texts, miou, ...
    intervals: dict[str, tuple[float, float]]  # 95%, of `metrics` and `controls/<variant>/<key>`
    alphas: dict[str, dict[str, float]]  # by weight: t2i_r1, ...
    controls: dict[str, dict[str, float]]  # of the model's own score, by variant: t2i_r1, ...
    control_differences: dict[str, dict[str, float]]  # see `items.control_differences`
    lengths: dict[str, list[Group]]  # of the model's own score, see `recalls_by_length`
    ranking: Ranking | None  # by the model's own score; None without captions
    items: Tables  # what was measured on each caption, image and region

    def as_json(self) -> dict[str, Any]:
        """The metrics, and what is nested under them."""
        nested = ("intervals", "alphas", "controls", "control_differences", "lengths")
        return self.metrics | {name: getattr(self, name) for name in nested}


def own_score(scorer: Scorer) -> str:
    """The kind of score that a model is judged by."""
    return kind_names(scorer.components)[-1]


def score_benchmark(encoder: Encoder, ranker: Ranker, benchmark: Benchmark) -> BenchmarkResults:
    """Encode what is not stored yet, and score it every way that the configuration asks for."""
    config, owner = encoder.config, benchmark.text_to_image
    label = f"evaluate {encoder.adapter.name} {benchmark.name}"
    images = encoder.images(benchmark)
    metrics, items = measured(benchmark, images)
    metrics = {"images": float(images.count)} | metrics
    if benchmark.classes:
        numbers, items[CLASSES] = classified(encoder, ranker, benchmark, images)
        metrics |= numbers
    if not benchmark.captions:
        intervals = _intervals(estimates(items, images.count))
        return BenchmarkResults(metrics, intervals, {}, {}, {}, {}, None, items)
    (texts,) = encoder.texts([benchmark.captions], benchmark.name, benchmark.rule)
    names = kind_names(ranker.scorer.components)
    kinds = _kinds(config.alpha, names)
    if config.top_k is not None:
        kinds.append(ScoreKind("rerank", config.alpha, config.top_k))
    sweep = [ScoreKind(f"alpha {a:g}", a, best=0) for a in config.alphas] if len(names) > 1 else []
    found = ranker.rank(images, texts, owner, [*kinds, *sweep], label)
    metrics["texts"] = float(len(owner))
    rankings = {}
    for kind in kinds:
        ranked = found[kind.name]
        rankings[AS_WRITTEN, kind.name] = ranked
        metrics |= {f"{kind.name}_{key}": value for key, value in _recalls_of(ranked).items()}
    own = next(kind for kind in kinds if kind.name == names[-1])
    changed = list(variants(config.controls, benchmark.sentences, owner, config.seed))
    controls = {}
    if changed:
        captions = [variant.captions for variant in changed]
        versions = encoder.texts(captions, benchmark.name, benchmark.rule)
        for variant, texts in zip(changed, versions, strict=True):
            ranked = ranker.rank(images, texts, owner, [own], f"{label} {variant.name}")[own.name]
            rankings[variant.name, own.name] = ranked
            share = variant.changed_share(benchmark.sentences)
            controls[variant.name] = _recalls_of(ranked) | {"changed_share": share}
    items |= ranked_items(rankings, benchmark.urls)
    of_metrics = estimates(items, images.count)
    return BenchmarkResults(
        metrics,
        _intervals(of_metrics),
        {f"{alpha:g}": _recalls_of(found[f"alpha {alpha:g}"]) for alpha in config.alphas if sweep},
        controls,
        control_differences(of_metrics, own.name),
        recalls_by_length(benchmark.sentences, found[own.name]),
        found[own.name],
        items,
    )


def _intervals(of_metrics: Mapping[str, Estimate]) -> dict[str, tuple[float, float]]:
    return {name: interval(estimate) for name, estimate in of_metrics.items()}


def to_csv(evaluations: Sequence[Mapping[str, Any]]) -> str:
    """Every number of some models' results (as in metrics.json), one a row."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for evaluation in evaluations:
        for name, results in evaluation["benchmarks"].items():
            start = (evaluation["model"], evaluation["step"], name)
            writer.writerows((*start, *row) for row in _csv_rows(results, evaluation["score"]))
    return text.getvalue()


def table(benchmarks: Mapping[str, Mapping[str, Any]]) -> str:
    """The tables that end the stage's log, in per cent: recalls, then controls and overlaps where
    measured. Keys are what stands in the first column."""
    width = max(map(len, ("benchmark", *benchmarks)))
    lines = []
    for name, metrics in benchmarks.items():
        kinds = [kind for kind in SCORES if f"{kind}_{WAYS[0]}_r1" in metrics]
        for kind in kinds:
            first = kind == kinds[0]
            label = f"{name:<{width}}{metrics['images']:>8,.0f}" if first else " " * (width + 8)
            lines.append(f"{label}  {kind:<8}" + _recalls(metrics, f"{kind}_"))
    if lines:
        lines.insert(0, f"{'benchmark':<{width}}{'images':>8}  {'score':<8}{_recall_heads()}")
    for group, what in (("alphas", "alpha"), ("controls", "captions")):
        rows = [
            (name, variant, recall)
            for name, metrics in benchmarks.items()
            for variant, recall in metrics.get(group, {}).items()
        ]
        if rows:
            second = max(len(what), *(len(variant) for _, variant, _ in rows))
            lines += ["", f"{'benchmark':<{width}}  {what:<{second}}{_recall_heads()}"]
            lines += [f"{n:<{width}}  {v:<{second}}{_recalls(recall, '')}" for n, v, recall in rows]
    located = {name: metrics for name, metrics in benchmarks.items() if "miou" in metrics}
    if located:
        head = f"{'benchmark':<{width}}{'regions':>8}{'mIoU':>8}{'oIoU':>8}{'P@0.5':>8}"
        lines += ["", f"{head}{'pointing':>10}  centre box mIoU, oIoU"]
    for name, metrics in located.items():
        shown = "".join(f"{100 * metrics[key]:>8.1f}" for key in ("miou", "oiou", "precision_50"))
        shown += f"{100 * metrics['pointing']:>10.1f}"
        box = "".join(f"{100 * metrics[f'centre_box_{key}']:>8.1f}" for key in ("miou", "oiou"))
        lines.append(f"{name:<{width}}{metrics['regions']:>8,.0f}{shown}  {box}")
    segmented = {name: m for name, m in benchmarks.items() if "semantic_miou" in m}
    if segmented:
        lines += ["", f"{'benchmark':<{width}}{'images':>8}{'mIoU':>8}{'pixels':>8}  achievable"]
    for name, metrics in segmented.items():
        levels = [int(k.partition("_")[2]) for k in metrics if k.startswith("achievable_")]
        levels.sort(reverse=True)
        best = ", ".join(f"{100 * metrics[f'achievable_{n}']:.1f} of {n}" for n in levels)
        shown = "".join(f"{100 * metrics[k]:>8.1f}" for k in ("semantic_miou", "pixel_accuracy"))
        lines.append(f"{name:<{width}}{metrics['images']:>8,.0f}{shown}  {best}")
    classified = {name: metrics for name, metrics in benchmarks.items() if "classes" in metrics}
    if classified:
        lines += [
            "",
            f"{'benchmark':<{width}}{'images':>8}{'classes':>8}  {'score':<8}{'top 1':>8}",
        ]
        lines[-1] += f"{'top 5':>8}{'mean per class':>16}"
    for name, metrics in classified.items():
        start = f"{name:<{width}}{metrics['images']:>8,.0f}{metrics['classes']:>8,.0f}"
        for kind in [kind for kind in SCORES if f"{kind}_top1" in metrics]:
            top1, top5, mean = (
                100 * metrics[f"{kind}_{key}"] for key in ("top1", "top5", "mean_per_class")
            )
            lines.append(f"{start}  {kind:<8}{top1:>8.1f}{top5:>8.1f}{mean:>16.1f}")
    return "\n".join(lines).lstrip("\n")


def _kinds(alpha: float, names: Sequence[str]) -> list[ScoreKind]:
    return [ScoreKind(name, alpha if name == "blended" else 0.0) for name in names]


def _recalls_of(ranked: Ranking) -> dict[str, float]:
    return recalls(ranked.text_rank, ranked.i2t)


def classified(
    encoder: Encoder, ranker: Ranker, benchmark: Benchmark, images: StoredFeatures
) -> tuple[dict[str, float], pa.Table]:
    """Zero-shot classification of a benchmark's images, `whole_top1`, `blended_top1`, ..., and of
    each image."""
    assert benchmark.classes is not None
    label = f"evaluate {encoder.adapter.name} {benchmark.name}"
    labels, prompts = benchmark.classes.labels, benchmark.classes.prompts
    captions = [(text,) for texts in prompts for text in texts]
    # The default rule keeps each as it is: a class may be called "St. Bernard".
    (found,) = encoder.texts([captions], benchmark.name, "default")
    classes = {name: class_features(tensor, len(prompts)) for name, tensor in found.items()}
    kinds = _kinds(encoder.config.alpha, kind_names(ranker.scorer.components))
    ranks = ranker.classify(images, classes, labels, kinds, label)
    own = torch.tensor(labels)
    metrics = {"classes": float(len(prompts))} | {
        f"{kind}_{key}": value
        for kind, rank in ranks.items()
        for key, value in classification_scores(rank, own).items()
    }
    return metrics, class_items(ranks, labels, benchmark.urls)


def measured(
    benchmark: Benchmark, images: StoredFeatures
) -> tuple[dict[str, float], dict[str, pa.Table]]:
    """What the benchmark's measure found, in all and of each region or image; nothing where it has
    none, or the model no heat maps."""
    rows, measure = images.aside()[MEASURED].numpy(), benchmark.measure
    if measure is None or not len(rows):
        return {}, {}
    return measure.scores(rows), {measure.items: measure.table(rows, benchmark)}


def _csv_rows(results: Mapping[str, Any], own: str) -> Iterator[tuple[Any, ...]]:
    """captions, score, metric, value, low, high."""
    for key, value in results.items():
        if isinstance(value, float):
            kind, _, metric = key.partition("_")
            of_score = kind in SCORES
            ends = results["intervals"].get(key, ("", ""))
            yield (AS_WRITTEN, *((kind, metric) if of_score else ("", key)), value, *ends)
    for alpha, recall in results["alphas"].items():
        for key, value in recall.items():
            yield AS_WRITTEN, f"alpha {alpha}", key, value, "", ""
    for variant, recall in results["controls"].items():
        for key, value in recall.items():
            ends = results["intervals"].get(f"controls/{variant}/{key}", ("", ""))
            yield variant, own, key, value, *ends
    for unit, groups in results["lengths"].items():
        for group in groups:
            captions = f"{group['low']:.0f} to {group['high']:.0f} {unit}"
            for key in ("texts", *(f"{way}_r1" for way in WAYS)):
                yield captions, own, key, group[key], "", ""


def _recall_heads() -> str:
    return "".join(
        f"{way.upper() + ' R@1':>9}" + "".join(f"{f'R@{k}':>7}" for k in RECALL_AT[1:])
        for way in WAYS
    )


def _recalls(metrics: Mapping[str, float], prefix: str) -> str:
    shown = ""
    for way in WAYS:
        values = [100 * metrics[f"{prefix}{way}_r{k}"] for k in RECALL_AT]
        shown += f"{values[0]:>9.1f}" + "".join(f"{value:>7.1f}" for value in values[1:])
    return shown
