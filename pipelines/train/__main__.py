"""The train stage: checks everything, starts Ray Train, says where the model is.
Run as `python -m pipelines.train CONFIG [key=value ...]`, most often as a Ray job."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from caft.config import load_model_config, to_yaml
from caft.errors import ConfigError, DataError
from caft.sfcn import read_sfcn_weights
from pipelines import storage
from pipelines.cluster import connect
from pipelines.config import stage_main
from pipelines.data.dataset import open_dataset
from pipelines.tracking import Tracker
from pipelines.train.attempts import train_to_the_end
from pipelines.train.config import TrainConfig
from pipelines.train.ingest import index_row_groups
from pipelines.train.loop import CHECKPOINTS, FINAL, TrainJob
from pipelines.train.plan import EpochPlan

# Ray Train would print what workers print a second time.
WORKER_ENVIRONMENT = {"RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}
RESULT, CONFIG_COPY = "train.json", "train.yaml"
# What may differ when a run is taken up again: it changes the speed, not the result.
FREE_FIELDS = dict.fromkeys(
    ("tracking", "progress_every_s", "scaling", "checkpoint", "log_every_steps"), True
)
FREE_DEEPSPEED = {"zero_stage", "offload_optimizer"}
PLACES = dict.fromkeys(("model", "output", "dataset"), True)  # what lies there counts, not where


def run(config: TrainConfig) -> None:
    """Train until the last step, from the newest whole checkpoint if there is one.

    Raises:
        DataError: the dataset is missing, unfinished, or too small for one batch.
        CheckpointError: the output holds checkpoints of another model.
        ConfigError: the output holds a run of another configuration, or the superpixel network
            has no weights.
    """
    model = load_model_config(config.model)
    if model.image.superpixels.method == "sfcn":
        read_sfcn_weights(model.image.superpixels)  # missing ones are known before Ray starts
    dataset = open_dataset(config.dataset)
    output = Path(storage.require_absolute(config.output, "output"))
    identity = _identity(config, model.model_dump_json(), dataset.fingerprint)
    if (output / RESULT).exists():
        result = json.loads((output / RESULT).read_text(encoding="utf-8"))
        _require_same_run(result["identity"], identity, output)
        print(f"train: finished before, at step {result['step']:,}: {output / FINAL}", flush=True)
        return
    plan = EpochPlan(
        index_row_groups(dataset, config.split),
        config.global_batch,
        config.ingest.lanes,
        config.ingest.window_steps,
        config.seed,
    )
    if plan.steps_per_epoch == 0:
        raise DataError(
            f"{config.dataset}: {plan.rows} rows in split '{config.split}' are fewer than "
            f"global_batch {config.global_batch}; lower it or add data"
        )
    total_steps = max(1, round(config.epochs * plan.steps_per_epoch))
    (output / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    run_id = _run_id(output, identity)
    links = {"data": dataset.manifest.get("mlflow_run_id", "")}
    with Tracker.start(config.tracking, "train", output.name, config, links, run_id) as tracker:
        _remember(output, identity, tracker.run_id)
        (output / CONFIG_COPY).write_text(to_yaml(config), encoding="utf-8")
        tracker.set_tags({"model": model.name, "dataset_fingerprint": dataset.fingerprint})
        print(
            f"train: {model.name} on {plan.rows:,} rows, {total_steps:,} steps of "
            f"{config.global_batch}",
            flush=True,
        )
        connect(WORKER_ENVIRONMENT)
        job = TrainJob(config, model, plan, total_steps, dataset.fingerprint, tracker.run_id)
        train_to_the_end(job, lambda: _newest_step(output / CHECKPOINTS))
        manifest = json.loads((output / FINAL / "manifest.json").read_text(encoding="utf-8"))
        result = {"identity": identity, "step": manifest["step"], "metrics": manifest["metrics"]}
        (output / RESULT).write_text(json.dumps(result, indent=2), encoding="utf-8")
        tracker.log_artifact(str(output / FINAL / "manifest.json"), "checkpoint")
        print(f"train: finished at step {manifest['step']:,}: {output / FINAL}", flush=True)


def _newest_step(checkpoints: Path) -> int:
    """The step of the newest checkpoint with a manifest, 0 without any."""
    manifests = sorted(checkpoints.glob("step-*/manifest.json"))
    return int(manifests[-1].parent.name.removeprefix("step-")) if manifests else 0


def _identity(config: TrainConfig, model: str, fingerprint: str) -> str:
    """Digest of everything that decides the result."""
    text = config.model_dump_json(exclude=FREE_FIELDS | PLACES | {"deepspeed": FREE_DEEPSPEED})
    return hashlib.sha256(f"{text}\n{model}\n{fingerprint}".encode()).hexdigest()


def _require_same_run(theirs: str, ours: str, output: Path) -> None:
    if theirs != ours:
        raise ConfigError(
            f"output: {output} holds a run of another configuration, model or dataset "
            f"(see {CONFIG_COPY} there); choose another output"
        )


def _run_id(output: Path, identity: str) -> str | None:
    """The MLflow run of an earlier, unfinished attempt at the same thing."""
    path = output / "run.json"
    if not path.exists():
        return None
    known = json.loads(path.read_text(encoding="utf-8"))
    _require_same_run(known["identity"], identity, output)
    return known["run_id"]


def _remember(output: Path, identity: str, run_id: str) -> None:
    text = json.dumps({"identity": identity, "run_id": run_id})
    (output / "run.json").write_text(text, encoding="utf-8")


def main(argv: Sequence[str]) -> int:
    """Console entry."""
    return stage_main(TrainConfig, run, list(argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
