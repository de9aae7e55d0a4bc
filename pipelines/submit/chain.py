"""Stages one after the other, outputs of one as inputs of the next, in a single process or job.
`python -m pipelines.submit.chain STAGE CONFIG [key=value ...] [--then STAGE CONFIG ...] ...`

Every stage knows what it has finished, so the same chain goes on from the first unfinished one."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from pydantic import Field

from caft.config import Config, read_yaml, validate
from caft.errors import ConfigError
from caft.overrides import apply_override, argument
from pipelines import storage
from pipelines.config import StageConfig, command
from pipelines.data.config import DataConfig
from pipelines.embed.config import EmbedConfig
from pipelines.evaluate.config import EvaluateConfig
from pipelines.recipes import first_word, load_recipe
from pipelines.run_layout import FINAL
from pipelines.sweep.config import SweepConfig
from pipelines.train.config import TrainConfig

StageName = Literal["data", "train", "evaluate", "embed", "sweep"]
STAGES: tuple[StageName, ...] = get_args(StageName)
SCHEMAS: dict[str, type[StageConfig]] = {
    "data": DataConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "embed": EmbedConfig,
    "sweep": SweepConfig,
}
SCORING = ("evaluate", "embed")  # stages that read a checkpoint
ANY_IMAGES = "images"  # recipe of embed
THEN = "--then"
ONE_STEP = re.compile(r"(?P<stage>\w+):(?P<config>[^,=]+)(?P<overrides>,.*)?")
BETWEEN_OVERRIDES = re.compile(r",(?=[\w.]+=)")  # a comma inside a value is followed by no key=
OUTPUT_OF = re.compile(r"\{(\w+)\.output\}")
MARKED = re.compile(r"(data|train|evaluate|embed|sweep)\.output\.")


@dataclass(frozen=True)
class Step:
    """One stage of a chain."""

    stage: str
    config: str
    overrides: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        """After `python -m pipelines.STAGE`."""
        run = ["run"] if self.stage == "sweep" else []
        return [*run, self.config, *self.overrides]

    def load(self) -> StageConfig:
        """Raises ConfigError as `load_config`."""
        return load_recipe(SCHEMAS[self.stage], self.config, self.overrides)

    def sets(self, key: str) -> bool:
        return any(override.startswith(f"{key}=") for override in self.overrides)


class StepConfig(Config):
    """One stage in a chain's file."""

    stage: StageName
    config: str = Field(description="recipe of that stage")
    set: tuple[str, ...] = Field((), description="key=value, over that recipe")


class ChainConfig(Config):
    """Stages to run one after the other."""

    stages: tuple[StepConfig, ...] = Field(min_length=1)


def read_chain(path: str) -> list[Step]:
    """The steps in a YAML file. Raises ConfigError as `load_config`."""
    chain = validate(ChainConfig, read_yaml(path), source=path)
    return [Step(step.stage, step.config, step.set) for step in chain.stages]


def parse_step(text: str) -> Step:
    """`STAGE:CONFIG[,key=value...]` as a step. Raises ConfigError when it is something else."""
    match = ONE_STEP.fullmatch(text)
    if match is None or match["stage"] not in STAGES:
        raise ConfigError(
            f"{THEN} {text}: must be STAGE:CONFIG[,key=value...] with one of {', '.join(STAGES)}"
        )
    overrides = BETWEEN_OVERRIDES.split(match["overrides"] or "")[1:]
    return Step(match["stage"], match["config"], tuple(overrides))


def connect_steps(steps: Sequence[Step]) -> list[Step]:
    """The steps with inputs set to earlier outputs, each checked against its schema.

    A training and an embedding take the dataset of the last data step before them, an evaluation
    and an embedding the final checkpoint of the last training, unless a step sets that key itself.
    In other overrides
    `{data.output}` and its like stand for the last output of that stage.

    Raises:
        ConfigError: as `load_config`, or an output of a stage that does not come before.
    """
    outputs: dict[str, str] = {}
    connected = []
    for step in steps:
        step = _with_recipe(step)
        overrides = [_filled(override, outputs, step) for override in step.overrides]
        if step.stage == "train" and "data" in outputs and not step.sets("dataset"):
            overrides.append(argument("dataset", outputs["data"]))
        if step.stage == "embed" and "data" in outputs and not step.sets("source.path"):
            overrides.append(argument("source.path", outputs["data"]))
        if step.stage in SCORING and "train" in outputs and not step.sets("checkpoint"):
            overrides.append(argument("checkpoint", storage.join(outputs["train"], FINAL)))
        step = replace(step, overrides=tuple(overrides))
        outputs[step.stage] = step.load().model_dump()["output"]
        connected.append(step)
    return connected


def _with_recipe(step: Step) -> Step:
    """The step with a recipe, where its first word is what a key of that is to be: jobs get files
    of this folder alone."""
    if key := first_word(SCHEMAS[step.stage], step.config):
        overrides = (argument(key, step.config), *step.overrides)
        return replace(step, config=ANY_IMAGES, overrides=overrides)
    return step


def chain_arguments(steps: Sequence[Step]) -> list[str]:
    """After `python -m`: one stage itself, or several in a chain."""
    if len(steps) == 1:
        return [f"pipelines.{steps[0].stage}", *steps[0].arguments]
    words = ["pipelines.submit.chain"]
    for n, step in enumerate(steps):
        words += [*([THEN] if n else []), step.stage, step.config, *step.overrides]
    return words


def run(steps: Sequence[Step]) -> int:
    """Run the steps in turn, each in a process of its own; the exit code of the one that failed."""
    for number, step in enumerate(steps, 1):
        label = f"{step.stage} ({number} of {len(steps)})"
        print(f"chain: {label}: {step.config}", flush=True)
        program = [sys.executable, "-m", f"pipelines.{step.stage}", *step.arguments]
        started = time.monotonic()
        code = subprocess.run(program).returncode
        if code != 0:
            print(
                f"chain: {label} ended with code {code}; the same command goes on from there",
                file=sys.stderr,
                flush=True,
            )
            return 128 - code if code < 0 else code
        print(f"chain: {label} took {time.monotonic() - started:.0f} s", flush=True)
    print(f"chain: finished: {', '.join(step.stage for step in steps)}", flush=True)
    return 0


def parse(argv: Sequence[str]) -> list[Step]:
    """The steps of this module's command line. Raises ConfigError naming a step that is none."""
    groups: list[list[str]] = [[]]
    for word in argv:
        if word == THEN:
            groups.append([])
        else:
            groups[-1].append(word)
    for group in groups:
        if len(group) < 2 or group[0] not in STAGES:
            raise ConfigError(
                f"'{' '.join(group)}': must be STAGE CONFIG [key=value ...] with one of "
                f"{', '.join(STAGES)}"
            )
    return [Step(stage, config, tuple(overrides)) for stage, config, *overrides in groups]


def _filled(override: str, outputs: dict[str, str], step: Step) -> str:
    """The override with outputs in the place of `{STAGE.output}`, whatever characters they have."""

    def output(match: re.Match[str]) -> str:
        stage = match[1]
        if stage not in outputs:
            raise ConfigError(
                f"{step.stage}: {override}: no {stage} stage comes before; add one, or write the "
                "path itself"
            )
        return outputs[stage]

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(item) for key, item in value.items()}
        if isinstance(value, list):
            return [filled(item) for item in value]
        return MARKED.sub(output, value) if isinstance(value, str) else value

    if not OUTPUT_OF.search(override):
        return override
    # A plain word until the value has been read: braces and paths mean something to YAML.
    key, _, text = OUTPUT_OF.sub(r"\1.output.", override).partition("=")
    raw: dict[str, Any] = {}
    apply_override(raw, f"value={text}")
    return argument(key, filled(raw["value"]))


def main(argv: Sequence[str]) -> int:
    """Console entry."""
    return command(lambda: run(connect_steps(parse(argv))))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
