"""Whether an output holds the evaluation that is asked for: its settings, checkpoint and data.
Asked by the evaluate stage before it continues, and by a sweep of every evaluation it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines import storage
from pipelines.evaluate.benchmark import Benchmark
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.outputs import METRICS
from pipelines.identity import first_difference, require_same, require_same_config

CONFIG_COPY, RUN = "evaluate.yaml", "run.json"
HOLDS = "an evaluation"
# What may differ when an evaluation is resumed: where things lie, and the speed.
FREE_FIELDS: dict[str, Any] = {
    **dict.fromkeys(
        ("tracking", "progress_every_s", "checkpoint", "output", "features", "data"), True
    ),
    **dict.fromkeys(("batch_size", "concurrency", "num_gpus_per_actor"), True),
    "benchmarks": {
        "__all__": {"dataset", "regions", "root", "images", "labelled", "class_names", "list"}
    },
}


def inputs_of(checkpoint_fingerprint: str, benchmarks: Sequence[Benchmark]) -> dict[str, Any]:
    """Fingerprints of all that an evaluation reads."""
    return {
        "checkpoint": checkpoint_fingerprint,
        "benchmarks": {benchmark.name: benchmark.fingerprint for benchmark in benchmarks},
    }


def require_same_evaluation(output: str, config: EvaluateConfig, inputs: Mapping[str, Any]) -> None:
    """Refuse an output of another evaluation; one that is empty holds none.

    Args:
        inputs: as `inputs_of` gives them; those that are not given are not compared.

    Raises:
        ConfigError: naming the first key that differs, its old and its new value.
    """
    copy = storage.join(output, CONFIG_COPY)
    if not storage.exists(copy):
        return
    require_same_config(output, HOLDS, copy, config, FREE_FIELDS)
    known = _inputs(output)
    if known is not None:
        fix = "give what it was made of, or choose another output"
        require_same(
            output, HOLDS, first_difference({k: known.get(k) for k in inputs}, inputs), fix
        )


def _inputs(output: str) -> dict[str, Any] | None:
    """What an evaluation was made of; None where it is unfinished and does not say."""
    run, metrics = storage.join(output, RUN), storage.join(output, METRICS)
    known = storage.read_json(run) if storage.exists(run) else {}
    if "inputs" in known:
        return dict(known["inputs"])
    if not storage.exists(metrics):  # an earlier version kept them with its results alone
        return None
    results = storage.read_json(metrics)
    datasets = {name: data["fingerprint"] for name, data in results["datasets"].items()}
    return {"checkpoint": results["checkpoint_fingerprint"], "benchmarks": datasets}
