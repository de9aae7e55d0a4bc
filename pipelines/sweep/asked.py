"""Whether what a study has done is what it asks for now: recipes, models, datasets, benchmarks.
A law over runs of two minds says nothing, so the first key that differs ends the command."""

from __future__ import annotations

from collections.abc import Sequence

from caft.config import load_model_config
from pipelines import storage
from pipelines.data.dataset import Dataset, open_dataset
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.identity import CONFIG_COPY as EVALUATE_COPY
from pipelines.evaluate.identity import require_same_evaluation
from pipelines.evaluate.stage import open_benchmarks
from pipelines.recipes import load_recipe
from pipelines.run_layout import CONFIG_COPY as TRAIN_COPY
from pipelines.sweep.tasks import Task
from pipelines.train.config import TrainConfig
from pipelines.train.deepspeed.config import resolve_deepspeed
from pipelines.train.identity import require_same_run, require_same_training
from pipelines.train.start import reading_as


def require_same_tasks(tasks: Sequence[Task]) -> None:
    """Compare every task that was begun with what its output holds.

    Raises:
        ConfigError: naming the first key that differs, its old and its new value.
        DataError: a dataset or benchmark that cannot be opened.
    """
    datasets: dict[str, Dataset] = {}
    fingerprints: dict[str, dict[str, str]] = {}
    for task in tasks:
        path, *overrides = task.arguments
        copy = TRAIN_COPY if task.stage == "train" else EVALUATE_COPY
        if not storage.exists(storage.join(task.output, copy)):
            continue
        if task.stage == "train":
            config = resolve_deepspeed(load_recipe(TrainConfig, path, overrides))
            if config.dataset not in datasets:
                datasets[config.dataset] = open_dataset(config.dataset)
            dataset = datasets[config.dataset]
            model = reading_as(dataset, load_model_config(config.model))
            require_same_training(task.output, storage.exists(task.result))
            require_same_run(task.output, config, model, dataset.fingerprint)
        else:
            asked = load_recipe(EvaluateConfig, path, overrides)
            key = repr(asked.located())
            if key not in fingerprints:
                fingerprints[key] = {b.name: b.fingerprint for b in open_benchmarks(asked)}
            # That of the checkpoint follows from its training, which was compared.
            require_same_evaluation(task.output, asked, {"benchmarks": fingerprints[key]})
