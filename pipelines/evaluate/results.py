"""The numbers of one benchmark, and the table that shows them.
Between the embedded benchmark and everything that reports: MLflow, metrics.json, report, log."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from caft.config import ModelConfig
from caft.metrics import overlap_scores, retrieval_recall
from caft.metrics.retrieval import RECALL_AT
from caft.model import CAFT
from pipelines.evaluate.embed import Embedded

SCORES, WAYS = ("whole", "part", "blended"), ("t2i", "i2t")


def score_names(model: ModelConfig) -> tuple[str, ...]:
    """The kinds of score a model has; the last is its own, that of `CAFT.score`."""
    if model.losses.parts and model.losses.has_whole:
        return ("whole", "blended")
    return ("part",) if model.losses.parts else ("whole",)


def score_benchmark(
    model: CAFT, embedded: Embedded, alpha: float
) -> tuple[dict[str, float], Tensor]:
    """Every number of a benchmark by name, and the model's own scores (N_images, N_texts)."""
    own = torch.arange(len(embedded.texts.whole))
    metrics = {"images": float(len(own))}
    for name in score_names(model.config):
        weight = alpha if name == "blended" else 0.0
        scores = model.score(embedded.images, embedded.texts, alpha=weight)
        recall = retrieval_recall(scores, own)
        metrics |= {f"{name}_{key}": value for key, value in recall.items()}
    if len(embedded.overlaps):
        pixels = embedded.overlaps.T
        metrics["regions"] = float(len(embedded.overlaps))
        metrics |= overlap_scores(pixels[0], pixels[1])
        box = overlap_scores(pixels[2], pixels[3])
        metrics |= {f"centre_box_{key}": value for key, value in box.items()}
    return metrics, scores


def table(benchmarks: Mapping[str, Mapping[str, float]]) -> str:
    """The tables that end the stage's log, in per cent: recalls, then overlaps where measured."""
    width = max(map(len, ("benchmark", *benchmarks)))
    head = f"{'benchmark':<{width}}{'images':>8}  {'score':<8}"
    for way in WAYS:
        head += f"{way.upper() + ' R@1':>9}" + "".join(f"{f'R@{k}':>7}" for k in RECALL_AT[1:])
    lines = [head]
    for name, metrics in benchmarks.items():
        kinds = [kind for kind in SCORES if f"{kind}_{WAYS[0]}_r1" in metrics]
        for kind in kinds:
            first = kind == kinds[0]
            label = f"{name:<{width}}{metrics['images']:>8,.0f}" if first else " " * (width + 8)
            lines.append(f"{label}  {kind:<8}" + _recalls(metrics, kind))
    located = {name: metrics for name, metrics in benchmarks.items() if "miou" in metrics}
    if located:
        head = f"{'benchmark':<{width}}{'regions':>8}{'mIoU':>8}{'oIoU':>8}"
        lines += ["", f"{head}  centre box mIoU, oIoU"]
    for name, metrics in located.items():
        shown = "".join(f"{100 * metrics[key]:>8.1f}" for key in ("miou", "oiou"))
        box = "".join(f"{100 * metrics[f'centre_box_{key}']:>8.1f}" for key in ("miou", "oiou"))
        lines.append(f"{name:<{width}}{metrics['regions']:>8,.0f}{shown}  {box}")
    return "\n".join(lines)


def _recalls(metrics: Mapping[str, float], kind: str) -> str:
    shown = ""
    for way in WAYS:
        values = [100 * metrics[f"{kind}_{way}_r{k}"] for k in RECALL_AT]
        shown += f"{values[0]:>9.1f}" + "".join(f"{value:>7.1f}" for value in values[1:])
    return shown
