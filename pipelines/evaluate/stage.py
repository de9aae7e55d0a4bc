"""The evaluate stage's flow: check inputs, embed each benchmark, score, log, report.
Finished results are recognised by checkpoint, datasets and configuration, and kept."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import caft
from caft.checkpoint import CONFIG, WEIGHTS, read_manifest, sha256_of
from caft.config import to_yaml
from caft.errors import ConfigError
from caft.model import CAFT
from pipelines import storage
from pipelines.evaluate.benchmarks import Benchmark, open_benchmark
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.embed import embed_benchmark
from pipelines.evaluate.report import Scored, render_report
from pipelines.evaluate.results import score_benchmark, score_names, table
from pipelines.tracking import Tracker

METRICS, REPORT, CONFIG_COPY, RUN = "metrics.json", "report.html", "evaluate.yaml", "run.json"
# What may differ when an evaluation is taken up again: where things lie, and the speed.
FREE_FIELDS: dict[str, Any] = {
    **dict.fromkeys(("tracking", "progress_every_s", "checkpoint", "output"), True),
    **dict.fromkeys(("batch_size", "concurrency", "num_gpus_per_actor"), True),
    "benchmarks": {"__all__": {"dataset", "regions"}},
}
REPORT_BYTES = 64 * 2**20  # rough need of disk, to refuse work whose result could not be kept


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found whole, and its model."""

    path: str
    model: CAFT
    fingerprint: str  # of weights and model configuration
    step: int
    run_id: str  # the train stage's MLflow run; empty when unknown


def run(config: EvaluateConfig) -> None:
    """Score the checkpoint on every benchmark, unless that was done before.

    Raises:
        CheckpointError: the checkpoint is unfinished, damaged or does not fit its configuration.
        DataError: a dataset or regions file that cannot be used.
        ConfigError: the output holds another evaluation, or a path is relative in a Ray job.
        StorageError: the output cannot be written.
    """
    checkpoint = open_checkpoint(storage.require_absolute(config.checkpoint, "checkpoint"))
    output = storage.require_absolute(config.output, "output")
    config = config.model_copy(update={"checkpoint": checkpoint.path, "output": output})
    benchmarks = [
        open_benchmark(benchmark, f"benchmarks.{n}")
        for n, benchmark in enumerate(config.benchmarks)
    ]
    identity = _identity(config, checkpoint, benchmarks)
    run_id = _known_run(output, identity)
    metrics_path, report_path = storage.join(output, METRICS), storage.join(output, REPORT)
    if storage.exists(metrics_path) and storage.exists(report_path):
        print(f"evaluate: finished before: {output}", flush=True)
        _print_results(config, storage.read_json(metrics_path), report_path)
        return
    storage.check_space(output, REPORT_BYTES)
    links = _links(checkpoint, benchmarks)
    name = output.rstrip("/").rsplit("/", 1)[-1]
    with Tracker.start(config.tracking, "evaluate", name, config, links, run_id) as tracker:
        known = {"identity": identity, "run_id": tracker.run_id}
        storage.write_json(storage.join(output, RUN), known)
        storage.write_bytes(storage.join(output, CONFIG_COPY), to_yaml(config).encode())
        model = checkpoint.model.config.name
        tracker.set_tags({"model": model, "checkpoint_fingerprint": checkpoint.fingerprint})
        scored = [_score(config, checkpoint, benchmark, tracker) for benchmark in benchmarks]
        results = {
            "identity": identity,
            "model": model,
            "step": checkpoint.step,
            "checkpoint": checkpoint.path,
            "checkpoint_fingerprint": checkpoint.fingerprint,
            "mlflow_run_id": tracker.run_id,
            "alpha": config.alpha,
            "score": score_names(checkpoint.model.config)[-1],
            "benchmarks": {result.benchmark.name: result.metrics for result in scored},
        }
        runs = {"evaluate": tracker.run_id, **links}
        facts = _facts(checkpoint, scored, runs)
        page = render_report(checkpoint.model, checkpoint.step, scored, config, facts)
        _attach(tracker, {REPORT: page, METRICS: json.dumps(results, indent=2)})
        storage.write_bytes(report_path, page.encode())
        storage.write_json(metrics_path, results)
    print(f"evaluate: finished: {output}", flush=True)
    _print_results(config, results, report_path)


def open_checkpoint(path: str) -> Checkpoint:
    """Load a checkpoint folder or a single `.safetensors` file, with what is known of it.

    Raises:
        CheckpointError: it is missing, unfinished, damaged, or does not fit its configuration.
    """
    local = Path(storage.local_copy(path))
    model = caft.load_model(local)
    if local.is_file():
        return Checkpoint(path, model, sha256_of(local), step=0, run_id="")
    manifest = read_manifest(local)
    digests = "".join(manifest["files"][name]["sha256"] for name in (WEIGHTS, CONFIG))
    return Checkpoint(
        path,
        model,
        hashlib.sha256(digests.encode()).hexdigest(),
        step=int(manifest.get("step", 0)),
        run_id=str(manifest.get("mlflow_run_id", "")),
    )


def _score(
    config: EvaluateConfig, checkpoint: Checkpoint, benchmark: Benchmark, tracker: Tracker
) -> Scored:
    embedded = embed_benchmark(config, checkpoint.model.config, benchmark)
    metrics, scores = score_benchmark(checkpoint.model, embedded, config.alpha)
    named = {f"{benchmark.name}/{key}": value for key, value in metrics.items()}
    tracker.log_metrics(named, step=checkpoint.step)
    return Scored(benchmark, metrics, scores)


def _identity(
    config: EvaluateConfig, checkpoint: Checkpoint, benchmarks: Sequence[Benchmark]
) -> str:
    """Digest of everything that decides the result."""
    prints = [checkpoint.fingerprint, *(benchmark.fingerprint for benchmark in benchmarks)]
    text = "\n".join([config.model_dump_json(exclude=FREE_FIELDS), *prints])
    return hashlib.sha256(text.encode()).hexdigest()


def _known_run(output: str, identity: str) -> str | None:
    """The MLflow run of an earlier attempt at the same evaluation."""
    path = storage.join(output, RUN)
    if not storage.exists(path):
        return None
    known = storage.read_json(path)
    if known["identity"] != identity:
        raise ConfigError(
            f"output: {output} holds the evaluation of another checkpoint, dataset or "
            f"configuration (see {CONFIG_COPY} there); choose another output"
        )
    return str(known["run_id"])


def _links(checkpoint: Checkpoint, benchmarks: Sequence[Benchmark]) -> dict[str, str]:
    """The runs this one builds on. Where benchmarks come from several data runs, each has its
    own link."""
    runs = {b.name: str(b.dataset.manifest.get("mlflow_run_id", "")) for b in benchmarks}
    if len(set(runs.values())) == 1:
        return {"train": checkpoint.run_id, "data": next(iter(runs.values()))}
    return {"train": checkpoint.run_id, **{f"data_{name}": run for name, run in runs.items()}}


def _facts(
    checkpoint: Checkpoint, scored: Sequence[Scored], runs: dict[str, str]
) -> dict[str, str]:
    """What the report says of where its numbers come from."""
    facts = {"Checkpoint": f"{checkpoint.path}, fingerprint {checkpoint.fingerprint}"}
    for result in scored:
        dataset = result.benchmark.dataset
        facts[f"Dataset of {result.benchmark.name}"] = (
            f"{dataset.path}, split {result.benchmark.split}, fingerprint {dataset.fingerprint}"
        )
    return facts | {f"MLflow run, {stage}": run for stage, run in runs.items() if run}


def _attach(tracker: Tracker, files: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
            tracker.log_artifact(str(Path(folder) / name))


def _print_results(config: EvaluateConfig, results: dict[str, Any], report: str) -> None:
    ordered = {b.name: results["benchmarks"][b.name] for b in config.benchmarks}
    print(f"\n{table(ordered)}\n\nreport: {report}", flush=True)
