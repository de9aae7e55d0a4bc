"""Predicts what a configuration would make and take, from a sample that is really downloaded.
Run as `python -m pipelines.data estimate CONFIG --rows 2000`; writes no dataset."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np
import ray

from pipelines import storage
from pipelines.data.config import DataConfig
from pipelines.data.estimate_text import describe
from pipelines.data.prediction import Duration, Estimate, Outcome, Range, SourceEstimate
from pipelines.data.probe import BATCHES, KEPT, Probe, SourceProbe, draw, probe
from pipelines.data.reasons import REASONS
from pipelines.data.stage import CHUNK_CPUS, check
from pipelines.recipes import load_recipe
from pipelines.workers import cluster_cpus

Z95 = 1.959964
T95 = 2.262  # of Student's distribution with BATCHES - 1 degrees of freedom
CORES = (16, 64, 256)


def estimate(
    config_path: str,
    overrides: Sequence[str],
    rows: int,
    json_file: str | None = None,
    dollars_per_core_hour: float | None = None,
    seed: int = 0,
) -> str:
    """Probe about `rows` rows over all sources, and predict the whole from them.

    Args:
        json_file: gets the numbers as JSON.
        dollars_per_core_hour: adds costs.

    Returns:
        the prediction as text.

    Raises:
        ConfigError, DataError: a configuration or a source that the stage would refuse, too.
    """
    config = load_recipe(DataConfig, config_path, overrides)
    check(config)
    drawn = draw(config, rows, seed)
    result = predict(probe(config, drawn), config, _cores(), dollars_per_core_hour)
    if json_file is not None:
        storage.write_json(json_file, asdict(result))
    return describe(result, config)


def predict(
    measured: Probe, config: DataConfig, cores: int, dollars_per_core_hour: float | None = None
) -> Estimate:
    """What the measurements say of the whole.

    Args:
        cores: of the cluster that would do it.
    """
    sources = measured.sources
    rows = sum(source.total for source in sources)
    sampled = sum(len(source.outcomes) for source in sources)
    chunks = rows / config.chunk_rows
    cpu_s = _total(sources, lambda source: source.cpu_s).plus(chunks * measured.chunk_cpu_s)
    cpu_hours = cpu_s.times(1 / 3600)
    downloaded = _total(sources, lambda source: source.downloaded_bytes)
    wall_s = _mean_of_batches(measured.wall_s)
    task_s = wall_s.times(rows).plus(chunks * measured.tail_s)
    outcomes = _outcomes(sources, rows)
    return Estimate(
        sampled_rows=sampled,
        rows=rows,
        sources=[_source(source) for source in sources],
        outcomes=outcomes,
        stored_bytes=_total(sources, lambda source: source.stored_bytes),
        downloaded_bytes=downloaded,
        cpu_hours=cpu_hours,
        kept_per_cpu_s=outcomes[0].rows.value / (3600 * cpu_hours.value),
        rows_per_cpu_s=rows / (3600 * cpu_hours.value),
        rows_per_s_of_a_task=1 / wall_s.value,
        waiting_share=measured.waiting_share,
        durations=[
            _duration(
                number, config, cpu_hours, task_s, downloaded.value, chunks, dollars_per_core_hour
            )
            for number in sorted({cores, *CORES})
        ],
        probe_s=measured.elapsed_s,
    )


def wilson(share: float, count: float) -> Range:
    """Wilson's 95% interval of a share that was seen among `count` rows."""
    spread = Z95**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = Z95 * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    # Rounding must not leave out what was seen.
    return Range(share, min(max(0.0, middle - half), share), max(min(1.0, middle + half), share))


def _outcomes(sources: Sequence[SourceProbe], rows: float) -> list[Outcome]:
    """Kept rows, then rejects in the order in which a row meets them."""
    seen = {outcome for source in sources for outcome in source.outcomes}
    weights = [source.total / rows for source in sources]
    counts = [len(source.outcomes) for source in sources]
    # So many rows, drawn without regard to sources, would tell as much.
    effective = 1 / sum(w**2 / n for w, n in zip(weights, counts, strict=True))
    outcomes = []
    for outcome in (KEPT, *REASONS):
        if outcome != KEPT and outcome not in seen:
            continue
        found = [source.outcomes.count(outcome) for source in sources]
        share = sum(w * k / n for w, k, n in zip(weights, found, counts, strict=True))
        interval = wilson(min(1.0, share), effective)
        outcomes.append(Outcome(outcome, sum(found), interval, interval.times(rows)))
    return outcomes


def _source(source: SourceProbe) -> SourceEstimate:
    count = len(source.outcomes)
    kept = source.outcomes.count(KEPT) / count
    return SourceEstimate(source.name, source.total, count, wilson(kept, count))


def _total(sources: Sequence[SourceProbe], values_of: Callable[[SourceProbe], np.ndarray]) -> Range:
    """The sum over all rows of what is known of the sample's, each source for itself."""
    total = variance = 0.0
    for source in sources:
        values = values_of(source)
        total += source.total * values.mean()
        if len(values) > 1:
            variance += source.total**2 * values.var(ddof=1) / len(values)
    half = Z95 * math.sqrt(variance)
    return Range(float(total), max(0.0, float(total) - half), float(total) + half)


def _mean_of_batches(seconds: np.ndarray) -> Range:
    mean = float(seconds.mean())
    if len(seconds) < BATCHES:
        return Range(mean, 0.0, 2 * mean)
    half = T95 * float(seconds.std(ddof=1)) / math.sqrt(len(seconds))
    return Range(mean, max(mean / 10, mean - half), mean + half)


def _duration(
    cores: int,
    config: DataConfig,
    cpu_hours: Range,
    task_s: Range,
    downloaded_bytes: float,
    chunks: float,
    dollars_per_core_hour: float | None,
) -> Duration:
    most = config.concurrency or max(1, round(cores / CHUNK_CPUS))
    tasks = min(most, max(1, math.ceil(chunks)))
    busy_cores = min(cores, tasks)
    by_cpu = cpu_hours.times(1 / busy_cores)
    by_task = task_s.times(1 / tasks / 3600)
    hours = by_cpu.or_larger(by_task)
    price = dollars_per_core_hour
    return Duration(
        cores,
        tasks,
        by_cpu,
        by_task,
        hours,
        "CPU" if by_cpu.value >= by_task.value else "network",
        downloaded_bytes / (3600 * hours.value),
        hours.times(cores * price) if price is not None else None,
    )


def _cores() -> int:
    """Of the cluster that the command runs on, or of this machine where it runs on none."""
    if ray.is_initialized() or os.environ.get("RAY_ADDRESS"):
        return cluster_cpus()
    return len(os.sched_getaffinity(0))
