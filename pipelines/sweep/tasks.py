"""A study as jobs: trunks at a constant rate, cool-downs that branch off them, evaluations.
What each runs and waits for; run.py decides when, pipelines/submit/jobs.py how."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from caft.errors import ConfigError
from pipelines import storage
from pipelines.config import TrackingConfig
from pipelines.run_layout import FINAL
from pipelines.sweep.config import SweepConfig
from pipelines.sweep.points import Point, Setting
from pipelines.train.checkpoints.store import CheckpointStore

TRAIN_RESULT, EVALUATE_RESULT = "train.json", "metrics.json"


@dataclass(frozen=True)
class Task:
    """One job of a stage.

    Attributes:
        needs: names of tasks that must have finished.
        result: a file that is there once the task has finished, in this or an earlier attempt.
        points: that it is for: of a trunk several, which branch off it.
        waits_for_choice: it belongs to a learning rate that first has to win.
    """

    name: str
    stage: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...]
    result: str
    points: tuple[Point, ...]
    output: str
    waits_for_choice: bool


def all_tasks(
    config: SweepConfig, points: Sequence[Point], tracking: TrackingConfig, pool_rows: int
) -> list[Task]:
    """Every task on a dataset of `pool_rows` rows, each after those it needs.

    Raises:
        ConfigError: a part of the dataset that is smaller than a batch.
    """
    tasks = []
    for setting, group in itertools.groupby(points, key=lambda point: point.setting):
        own = list(group)
        maker = _Maker(config, tracking, _steps_per_epoch(setting, pool_rows))
        # Rates that compete train a trunk to its first branch; those that win go on from there.
        legs = [own[:1], own[1:]] if len(config.lr) > config.lr_kept and own[1:] else [own]
        before: Task | None = None
        for number, leg in enumerate(legs):
            trunk = maker.trunk(leg, number, before)
            tasks.append(trunk)
            for point in leg:
                cooled = maker.cooldown(point, trunk)
                tasks += [cooled, maker.evaluation(point, cooled)]
            before = trunk
    return tasks


def _steps_per_epoch(setting: Setting, pool_rows: int) -> int:
    rows, batch = setting.rows or pool_rows, setting.recipe.global_batch
    if rows < batch:
        raise ConfigError(f"rows: {rows:,} are fewer than global_batch {batch:,}")
    return rows // batch


@dataclass(frozen=True)
class _Maker:
    config: SweepConfig
    tracking: TrackingConfig
    steps_per_epoch: int

    def trunk(self, leg: Sequence[Point], number: int, before: Task | None) -> Task:
        """To the last step that a cool-down of `leg` branches off, saved at each of them."""
        last, setting = leg[-1].branches_at, leg[0].setting
        name = f"trunk-{setting.name}-{number}"
        steps = ",".join(str(point.branches_at) for point in leg)
        own = ["optimizer.schedule=constant", f"checkpoint.at_steps=[{steps}]"]
        return self._train(name, leg, last, own, before, number > 0)

    def cooldown(self, point: Point, trunk: Task) -> Task:
        own = [
            "optimizer.schedule=constant_cooldown",
            f"optimizer.cooldown_steps={point.cooldown_steps}",
        ]
        return self._train(
            point.name, [point], point.steps, own, trunk, trunk.waits_for_choice, point.branches_at
        )

    def evaluation(self, point: Point, cooled: Task) -> Task:
        output = self._output("evaluate", point.name)
        arguments = [
            self.config.evaluate, *self.config.evaluate_set, *self._tracking(),
            f"checkpoint={storage.join(cooled.output, FINAL)}", f"output={output}",
        ]  # fmt: skip
        return Task(
            f"evaluate-{point.name}",
            "evaluate",
            tuple(arguments),
            (cooled.name,),
            storage.join(output, EVALUATE_RESULT),
            (point,),
            output,
            cooled.waits_for_choice,
        )

    def _train(
        self,
        name: str,
        points: Sequence[Point],
        steps: int,
        own: Sequence[str],
        before: Task | None,
        waits_for_choice: bool,
        from_step: int | None = None,
    ) -> Task:
        setting, output = points[0].setting, self._output("train", name)
        recipe = setting.recipe
        arguments = [
            self.config.train, *self.config.train_set, *self._tracking(), f"output={output}",
            f"model={setting.model.model_dump_json()}", f"global_batch={recipe.global_batch}",
            f"optimizer.lr={recipe.optimizer.lr!r}", f"seed={recipe.seed}",
            f"epochs={steps / self.steps_per_epoch!r}", *own,
        ]  # fmt: skip
        if setting.rows is not None:
            arguments.append(f"subset={{rows: {setting.rows}}}")
        if before is not None:
            step = from_step or before.points[-1].branches_at
            checkpoint = CheckpointStore(before.output).path(step)
            arguments.append(f"start_from={{checkpoint: {checkpoint}, state: true}}")
        return Task(
            name,
            "train",
            tuple(arguments),
            (before.name,) if before else (),
            storage.join(output, TRAIN_RESULT),
            tuple(points),
            output,
            waits_for_choice,
        )

    def _tracking(self) -> list[str]:
        known = self.tracking.model_dump(exclude_none=True)
        return [f"tracking.{key}={value}" for key, value in known.items()]

    def _output(self, kind: str, name: str) -> str:
        return storage.join(self.config.output, kind, name)
