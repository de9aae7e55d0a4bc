"""A study as jobs: trunks at a constant rate, cool-downs that branch off them, evaluations.
What each runs and waits for; run.py decides when, pipelines/submit/jobs.py how."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from caft.errors import ConfigError
from caft.overrides import argument
from pipelines import storage
from pipelines.config import TrackingConfig
from pipelines.run_layout import FINAL
from pipelines.sweep.config import SweepConfig
from pipelines.sweep.legs import Leg, legs_of
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
    tasks: list[Task] = []
    for setting, group in itertools.groupby(points, key=lambda point: point.setting):
        own = list(group)
        maker = _Maker(config, setting, tracking, _steps_per_epoch(setting, pool_rows))
        trunks: dict[int, Task] = {}  # by the steps that they save
        branches = {point.branches_at: point for point in own}
        for leg in legs_of(config, setting, own):
            # Rates that compete train a trunk to its first branch; those that win continue it.
            waits = len(config.lr) > config.lr_kept and own[0].branches_at not in leg.steps
            trunk = maker.trunk(leg, trunks.get(leg.from_step), waits)
            tasks.append(trunk)
            for step in leg.steps:
                trunks[step] = trunk
                if step in branches:
                    cooled = maker.cooldown(branches[step], trunk)
                    tasks += [cooled, maker.evaluation(branches[step], cooled)]
    return tasks


def _steps_per_epoch(setting: Setting, pool_rows: int) -> int:
    rows, batch = setting.rows or pool_rows, setting.recipe.global_batch
    if rows < batch:
        raise ConfigError(f"rows: {rows:,} are fewer than global_batch {batch:,}")
    return rows // batch


@dataclass(frozen=True)
class _Maker:
    config: SweepConfig
    setting: Setting
    tracking: TrackingConfig
    steps_per_epoch: int

    def trunk(self, leg: Leg, before: Task | None, waits_for_choice: bool) -> Task:
        """To the last step that a cool-down of `leg` branches off, saved at each of them."""
        own = [
            argument("optimizer.schedule", "constant"),
            argument("checkpoint.at_steps", list(leg.steps)),
        ]
        return self._train(
            leg.name, leg.points, leg.steps[-1], own, before, waits_for_choice, leg.from_step
        )

    def cooldown(self, point: Point, trunk: Task) -> Task:
        own = [
            argument("optimizer.schedule", "constant_cooldown"),
            argument("optimizer.cooldown_steps", point.cooldown_steps),
        ]
        return self._train(
            point.name, [point], point.steps, own, trunk, trunk.waits_for_choice, point.branches_at
        )

    def evaluation(self, point: Point, cooled: Task) -> Task:
        output = self._output("evaluate", point.name)
        arguments = [
            self.config.evaluate,
            *self.config.evaluate_set,
            *self.tracking.as_arguments(),
            argument("checkpoint", storage.join(cooled.output, FINAL)),
            argument("output", output),
        ]
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
        from_step: int,
    ) -> Task:
        setting, output = self.setting, self._output("train", name)
        recipe = setting.recipe
        arguments = [
            self.config.train,
            *self.config.train_set,
            *self.tracking.as_arguments(),
            argument("output", output),
            argument("model", setting.model.model_dump(mode="json")),
            argument("global_batch", recipe.global_batch),
            argument("optimizer.lr", recipe.optimizer.lr),
            argument("seed", recipe.seed),
            argument("epochs", steps / self.steps_per_epoch),
            *own,
        ]
        if setting.rows is not None:
            arguments.append(argument("subset", {"rows": setting.rows}))
        if before is not None:
            checkpoint = CheckpointStore(before.output).path(from_step)
            arguments.append(argument("start_from", {"checkpoint": checkpoint, "state": True}))
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

    def _output(self, kind: str, name: str) -> str:
        return storage.join(self.config.output, kind, name)
