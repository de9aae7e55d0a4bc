"""The evaluate stage's flow: check inputs, then encode, score, log and report each checkpoint.
Finished results are recognised by checkpoint, datasets and configuration, and kept."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray

from caft.config import to_yaml
from caft.errors import CAFTError
from caft.secrets import masked
from pipelines import storage, user_paths
from pipelines.evaluate.benchmark import Benchmark
from pipelines.evaluate.checkpoints import Checkpoint, open_checkpoints
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.embed import Encoder, pictures
from pipelines.evaluate.identity import CONFIG_COPY, RUN, inputs_of, require_same_evaluation
from pipelines.evaluate.opening import MissingSet, open_benchmark
from pipelines.evaluate.outputs import EXAMPLES, METRICS, item_files, read_output
from pipelines.evaluate.protocol import protocol, seen_in_training
from pipelines.evaluate.report.examples import Scored, gather_examples
from pipelines.evaluate.report.page import Evaluated, comparison_page, report_page
from pipelines.evaluate.results import own_score, score_benchmark, table, to_csv
from pipelines.evaluate.scoring import Ranker
from pipelines.evaluate.tracked import detail_tables, headlines
from pipelines.failures import understood
from pipelines.run_layout import FINAL
from pipelines.runs import run_page
from pipelines.tracking import About, EventLog, Tracker, send_rest
from pipelines.workers import cluster_cpus

TABLE, REPORT = "metrics.csv", "report.html"
COMPARISON = "comparison"  # .json, .csv and .html, of several checkpoints
FEATURES = "features"
REPORT_BYTES = 64 * 2**20  # rough need of disk, to refuse work whose result could not be kept


@dataclass(frozen=True)
class Evaluation:
    """One checkpoint on all benchmarks, and the folder of its results."""

    checkpoint: Checkpoint
    output: str
    inputs: Mapping[str, Any]  # fingerprints of the checkpoint, and of benchmarks by name

    @property
    def metrics(self) -> str:
        return storage.join(self.output, METRICS)

    def known_run(self, config: EvaluateConfig) -> str | None:
        """The MLflow run of an earlier attempt at the same evaluation.

        Raises:
            ConfigError: the output holds another evaluation; the first key that differs is named.
        """
        require_same_evaluation(self.output, config, self.inputs)
        path = storage.join(self.output, RUN)
        return str(storage.read_json(path)["run_id"]) if storage.exists(path) else None


def run(config: EvaluateConfig) -> None:
    """Score checkpoints on every benchmark, unless that was done before.

    One checkpoint's results go into the output, those of several into a folder of it for each,
    with a comparison beside them.

    Raises:
        CheckpointError: a checkpoint is unfinished, damaged or does not fit its configuration.
        DataError: a dataset or regions file that cannot be used.
        ConfigError: the output holds another evaluation, or a path is relative in a Ray job.
        StorageError: the output cannot be written.
    """
    checkpoints = open_checkpoints(config.checkpoints)
    output = user_paths.usable_path(config.output, "output", folder=True).rstrip("/")
    beside = storage.join(output.rpartition("/")[0], FEATURES)
    features = user_paths.usable_path(config.features or beside, "features")
    config = config.model_copy(update={"output": output, "features": features})
    benchmarks = open_benchmarks(config)
    evaluations = [
        Evaluation(
            checkpoint,
            output if len(checkpoints) == 1 else storage.join(output, checkpoint.label),
            inputs_of(checkpoint.fingerprint, benchmarks),
        )
        for checkpoint in checkpoints
    ]
    runs = {e.checkpoint.series: run_id for e in evaluations if (run_id := e.known_run(config))}
    open_ones = [e for e in evaluations if not storage.exists(e.metrics)]
    send_rest(config.tracking, output, "KILLED" if open_ones else "FINISHED")
    if open_ones:
        user_paths.check_space(output, REPORT_BYTES * len(open_ones))
        _evaluate(config, open_ones, benchmarks, runs)
    else:
        print(f"evaluate: finished before: {output}", flush=True)
    results = [storage.read_json(e.metrics) for e in evaluations]
    if len(results) > 1:
        storage.write_json(storage.join(output, f"{COMPARISON}.json"), results)
        csv = to_csv(results).encode()
        storage.write_bytes(storage.join(output, f"{COMPARISON}.csv"), csv)
        page = comparison_page([read_output(e.output) for e in evaluations])
        storage.write_bytes(storage.join(output, f"{COMPARISON}.html"), page.encode())
    if open_ones:
        print(f"evaluate: finished: {output}", flush=True)
    _print_results(config, evaluations, results)


def open_benchmarks(config: EvaluateConfig) -> list[Benchmark]:
    """All benchmarks; without the published sets that are missing, where that is allowed."""
    opened, missing = [], []
    for n, benchmark in enumerate(config.located()):
        try:
            opened.append(open_benchmark(benchmark, f"benchmarks.{n}"))
        except MissingSet as error:
            missing.append(error)
    if missing and not (config.allow_missing and opened):
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise MissingSet(f"{missing[0]}{more}")
    for absent in missing:
        print(f"evaluate: left out: {absent}", flush=True)
    return opened


def _evaluate(
    config: EvaluateConfig,
    evaluations: Sequence[Evaluation],
    benchmarks: Sequence[Benchmark],
    runs: Mapping[str, str],
) -> None:
    """Evaluate checkpoints, several at a time. Those of one training run share an MLflow run, in
    which each logs at its own step. One that fails fails its run alone: the others are finished.

    Raises:
        CAFTError: what the first one failed with, after all the others.
    """
    names = [benchmark.name for benchmark in benchmarks]
    by_series = {e.checkpoint.series: e for e in reversed(evaluations)}
    failed: dict[str, CAFTError] = {}  # by label
    with ExitStack() as stack:
        trackers = {}
        for series, first in reversed(by_series.items()):
            links = _links(first.checkpoint, benchmarks)
            datasets = {b.dataset.path for b in benchmarks if b.dataset}
            digest = hashlib.sha256(series.encode()).hexdigest()[:12]
            tracker = Tracker.start(
                config.tracking,
                _about(config, [e for e in evaluations if e.checkpoint.series == series], names),
                config,
                EventLog(config.output, f"evaluate-{digest}"),
                links,
                runs.get(series),
                [*first.checkpoint.trained_in, *sorted(datasets)],
            )
            trackers[series] = tracker
            labels = [e.checkpoint.label for e in evaluations if e.checkpoint.series == series]
            stack.push(partial(_end_run, tracker, failed, labels))
            trackers[series].set_tags({"model": first.checkpoint.model})
            trackers[series].log_datasets(
                list({(b.use.name, b.use.digest): b.use for b in benchmarks}.values())
            )
        with ThreadPoolExecutor(_side_by_side(config, len(evaluations))) as threads:
            waiting = {
                e.checkpoint.label: threads.submit(
                    _try_one, config, e, benchmarks, trackers[e.checkpoint.series]
                )
                for e in evaluations
            }
            try:
                for label, future in waiting.items():
                    if (error := future.result()) is not None:
                        failed[label] = error
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise
    if failed and len(evaluations) > 1:
        done = len(evaluations) - len(failed)
        print(f"evaluate: {done} of {len(evaluations)} checkpoints are finished", flush=True)
        for label, error in failed.items():
            print(f"evaluate: {label} failed: {error}", flush=True)
    for error in failed.values():
        raise error


def _end_run(
    tracker: Tracker,
    failed: Mapping[str, CAFTError],
    labels: Sequence[str],
    kind: type[BaseException] | None,
    *_: object,
) -> None:
    """End the run of some checkpoints by what ended the stage, or else by their own failure."""
    own = next((type(failed[label]) for label in labels if label in failed), None)
    tracker.__exit__(kind or own)


def _try_one(
    config: EvaluateConfig,
    evaluation: Evaluation,
    benchmarks: Sequence[Benchmark],
    tracker: Tracker,
) -> CAFTError | None:
    """Evaluate one checkpoint; returns what it failed with. The exception itself is let go of, as
    its frames hold actors that the other evaluations wait for."""
    try:
        _evaluate_one(config, evaluation, benchmarks, tracker)
    except Exception as error:
        found = understood(error, f"evaluate: {evaluation.checkpoint.label}")
        failure = found.with_traceback(None)
        failure.__context__ = failure.__cause__ = None
    else:
        return None
    gc.collect()
    return failure


def _evaluate_one(
    config: EvaluateConfig,
    evaluation: Evaluation,
    benchmarks: Sequence[Benchmark],
    tracker: Tracker,
) -> None:
    checkpoint, output = evaluation.checkpoint, evaluation.output
    known = {"inputs": evaluation.inputs, "run_id": tracker.run_id}
    storage.write_json(storage.join(output, RUN), known)
    storage.write_bytes(storage.join(output, CONFIG_COPY), to_yaml(config).encode())
    adapter = checkpoint.open()
    assert config.features is not None, "run has filled it in"
    encoder = Encoder(config, checkpoint.place, adapter, config.features)
    ranker = Ranker(adapter.scorer(), config.num_gpus_per_actor, config.progress_every_s)
    scored = []
    of_name = {benchmark.name: benchmark for benchmark in config.benchmarks}
    for benchmark in benchmarks:
        found = score_benchmark(encoder, ranker, benchmark)
        flat = headlines(found.as_json(), own_score(ranker.scorer))
        named = {f"{benchmark.name}/{key}": value for key, value in flat.items()}
        is_final = checkpoint.place.rstrip("/").endswith(f"/{FINAL}")
        run = checkpoint.run_id if is_final else None
        tracker.log_metrics(named, checkpoint.step, model_of=run, dataset=benchmark.use)
        scored.append(Scored(benchmark, found))
    results: dict[str, Any] = {
        "model": checkpoint.model,
        "label": checkpoint.label,
        "step": checkpoint.step,
        "series": checkpoint.series,
        "checkpoint": checkpoint.place,
        "checkpoint_fingerprint": checkpoint.fingerprint,
        "recipe": adapter.training.get("recipe", ""),
        "mlflow_run_id": tracker.run_id,
        "links": {stage: run for stage, run in _links(checkpoint, benchmarks).items() if run},
        "run_pages": _run_pages(config, [tracker.run_id, *_links(checkpoint, benchmarks).values()]),
        "datasets": {
            benchmark.name: {
                "path": benchmark.rows.place,
                "split": benchmark.split,
                "fingerprint": benchmark.fingerprint,
                "pictures": pictures(adapter, benchmark),
                "protocol": protocol(adapter, benchmark, of_name[benchmark.name]),
                "training_data": seen_in_training(adapter.training, benchmark),
            }
            for benchmark in benchmarks
        },
        "alpha": config.alpha,
        "score": own_score(ranker.scorer),
        "benchmarks": {result.benchmark.name: result.results.as_json() for result in scored},
    }
    tracker.set_tags({"checkpoint_fingerprint": checkpoint.fingerprint})
    examples = gather_examples(adapter, scored, config.report)
    texts = {
        TABLE: to_csv([results]),
        EXAMPLES: json.dumps(examples),
        REPORT: report_page(Evaluated(results, examples)),
    }
    files = {name: text.encode() for name, text in texts.items()}
    for each in scored:
        files |= item_files(each.benchmark.name, each.results.items)
    folder = None if output == config.output else checkpoint.label
    for name, data in files.items():
        storage.write_bytes(path := storage.join(output, name), data)
        tracker.log_artifact(path, folder)
    for name, rows in detail_tables(results["benchmarks"], results["score"]).items():
        tracker.log_table(rows, name, folder)
    storage.write_json(evaluation.metrics, results)  # last: with it the evaluation is finished
    tracker.log_artifact(evaluation.metrics, folder)


def _side_by_side(config: EvaluateConfig, count: int) -> int:
    """How many of `count` evaluations the cluster holds at once."""
    if config.num_gpus_per_actor:
        cluster_cpus()  # joins the cluster
        have, need = ray.cluster_resources().get("GPU", 0.0), config.num_gpus_per_actor
    else:
        have, need = float(cluster_cpus()), 1.0
    # Beside the actors of one there has to be room for what decodes its images.
    spare = 0.0 if config.num_gpus_per_actor else 1.0
    return max(1, min(count, int(have / (need * config.concurrency + spare))))


def _links(checkpoint: Checkpoint, benchmarks: Sequence[Benchmark]) -> dict[str, str]:
    """The runs this one builds on. Where benchmarks come from several data runs, each has its
    own link."""
    runs = {
        b.name: str(b.dataset.manifest.get("mlflow_run_id", "")) for b in benchmarks if b.dataset
    }
    if len(set(runs.values())) < 2:
        return {"train": checkpoint.run_id, "data": next(iter(runs.values()), "")}
    return {"train": checkpoint.run_id, **{f"data_{name}": run for name, run in runs.items()}}


def _run_pages(config: EvaluateConfig, runs: Sequence[str]) -> dict[str, str]:
    """Where a browser finds runs, of those that it does."""
    pages = {run: run_page(config.tracking, run) for run in runs if run}
    return {run: masked(page) for run, page in pages.items() if page is not None}


def _about(
    config: EvaluateConfig, evaluations: Sequence[Evaluation], benchmarks: Sequence[str]
) -> About:
    """The run of the checkpoints of one training run, in words."""
    first = evaluations[0]
    is_alone = len(evaluations) == 1
    several = "" if is_alone else f" and {len(evaluations) - 1} more of its run"
    return About(
        "evaluate",
        first.checkpoint.model
        if first.output == config.output
        else f"{first.checkpoint.model} {first.checkpoint.label}",
        f"Scores `{first.checkpoint.place}`{several} on {', '.join(benchmarks)}.",
        config.output,
        storage.join(first.output, REPORT) if is_alone else None,
    )


def _print_results(
    config: EvaluateConfig, evaluations: Sequence[Evaluation], results: Sequence[dict[str, Any]]
) -> None:
    rows = {}
    scored = results[0]["benchmarks"]
    for benchmark in [b.name for b in config.benchmarks if b.name in scored]:
        for evaluation, result in zip(evaluations, results, strict=True):
            several = len(evaluations) > 1
            name = f"{benchmark} {evaluation.checkpoint.label}" if several else benchmark
            rows[name] = result["benchmarks"][benchmark]
    print(f"\n{table(rows)}\n", flush=True)
    for evaluation in evaluations:
        print(f"report: {storage.join(evaluation.output, REPORT)}", flush=True)
    if len(evaluations) > 1:
        page = storage.join(config.output, f"{COMPARISON}.html")
        print(f"comparison: {page}", flush=True)
