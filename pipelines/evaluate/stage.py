"""The evaluate stage's flow: check inputs, embed each benchmark, score, log, report.
Finished results are recognised by checkpoint, datasets and configuration, and kept."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

import caft
from caft.checkpoint import read_manifest
from caft.metrics import retrieval_recall
from caft.model import CAFT
from pipelines import storage
from pipelines.data.dataset import Dataset, open_dataset
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.embed import embed_benchmark, read_regions
from pipelines.evaluate.report import Scored, write_report
from pipelines.tracking import Tracker

METRICS, REPORT = "metrics.json", "report.html"
FREE_FIELDS = {"tracking", "progress_every_s", "concurrency", "batch_size", "num_gpus_per_actor"}


def run(config: EvaluateConfig) -> None:
    """Score the checkpoint on every benchmark, unless that was done before.

    Raises:
        CheckpointError: the checkpoint is unfinished, damaged or does not fit its configuration.
        DataError: a dataset or regions file that cannot be used.
    """
    storage.require_absolute(config.output, "output")
    checkpoint = storage.local_copy(config.checkpoint)
    manifest = read_manifest(checkpoint)
    model = caft.load_model(checkpoint)
    datasets = {b.name: open_dataset(b.dataset) for b in config.benchmarks}
    regions = {b.name: read_regions(b.regions) if b.regions else {} for b in config.benchmarks}
    identity = _identity(config, manifest, datasets)
    metrics_path = storage.join(config.output, METRICS)
    if storage.exists(metrics_path):
        known = storage.read_json(metrics_path)
        if known["identity"] == identity:
            print(f"evaluate: finished before\n{table(known['benchmarks'])}", flush=True)
            print(f"report: {storage.join(config.output, REPORT)}", flush=True)
            return
    links = {
        "train": manifest.get("mlflow_run_id", ""),
        "data": next(iter(datasets.values())).manifest.get("mlflow_run_id", ""),
    }
    name = config.output.rstrip("/").rsplit("/", 1)[-1]
    with Tracker.start(config.tracking, "evaluate", name, config, links) as tracker:
        scored = []
        for benchmark in config.benchmarks:
            dataset = datasets[benchmark.name]
            embedded = embed_benchmark(config, benchmark, dataset, regions[benchmark.name])
            result = Scored(
                benchmark.name,
                dataset,
                benchmark.split,
                embedded,
                model.score(embedded.images, embedded.texts, config.alpha),
                {},
                regions[benchmark.name],
            )
            result.metrics = score(model, result)
            tracker.log_metrics(
                {f"{benchmark.name}/{key}": value for key, value in result.metrics.items()},
                step=manifest.get("step"),
            )
            print(f"evaluate: {benchmark.name}: {len(embedded.urls):,} images scored", flush=True)
            scored.append(result)
        report = storage.join(config.output, REPORT)
        facts = {
            "checkpoint": config.checkpoint,
            "step": f"{manifest.get('step', 0):,}",
            "blend": f"alpha = {config.alpha:g}",
            "evaluate run": tracker.run_id,
            **{f"{stage} run": run_id for stage, run_id in links.items() if run_id},
        }
        write_report(report, model, scored, facts, config.report)
        benchmarks = {result.name: result.metrics for result in scored}
        storage.write_json(metrics_path, {"identity": identity, "benchmarks": benchmarks})
        for path in (report, metrics_path):
            if not path.startswith("s3://"):
                tracker.log_artifact(path)
        print(f"{table(benchmarks)}\nreport: {report}", flush=True)


def score(model: CAFT, result: Scored) -> dict[str, float]:
    """All numbers of one benchmark: recalls of whole and blended scores, and overlaps."""
    embedded = result.embedded
    order = torch.arange(len(embedded.urls))
    whole = model.score(embedded.images, embedded.texts, alpha=0.0)
    metrics = {f"whole_{key}": v for key, v in retrieval_recall(whole, order).items()}
    metrics |= {f"blended_{key}": v for key, v in retrieval_recall(result.scores, order).items()}
    if len(embedded.iou):
        metrics["miou"] = float(embedded.iou.mean())
        metrics["centre_box_miou"] = float(embedded.centre_iou.mean())
    return metrics


def table(benchmarks: dict[str, dict[str, float]]) -> str:
    """The recall table that ends the stage's log, in per cent."""
    head = f"{'benchmark':<14}{'score':<9}{'T2I R@1':>9}{'R@5':>7}{'R@10':>7}"
    lines = [head + f"{'I2T R@1':>10}{'R@5':>7}{'R@10':>7}{'mIoU':>7}{'centre box':>12}"]
    for name, metrics in benchmarks.items():
        for kind in ("whole", "blended"):
            t2i = [100 * metrics[f"{kind}_t2i_r{k}"] for k in (1, 5, 10)]
            i2t = [100 * metrics[f"{kind}_i2t_r{k}"] for k in (1, 5, 10)]
            line = f"{name if kind == 'whole' else '':<14}{kind:<9}"
            line += f"{t2i[0]:>9.1f}{t2i[1]:>7.1f}{t2i[2]:>7.1f}"
            line += f"{i2t[0]:>10.1f}{i2t[1]:>7.1f}{i2t[2]:>7.1f}"
            if kind == "whole" and "miou" in metrics:
                line += f"{100 * metrics['miou']:>7.1f}{100 * metrics['centre_box_miou']:>12.1f}"
            lines.append(line)
    return "\n".join(lines)


def _identity(
    config: EvaluateConfig, manifest: dict[str, Any], datasets: dict[str, Dataset]
) -> str:
    weights = manifest["files"]["model.safetensors"]["sha256"]
    prints = [dataset.fingerprint for dataset in datasets.values()]
    text = f"{config.model_dump_json(exclude=FREE_FIELDS)}\n{weights}\n{prints}"
    return hashlib.sha256(text.encode()).hexdigest()
