"""Names in the output of a training run, for the stages that build on it too."""

from __future__ import annotations

CHECKPOINTS, FINAL, STEP = "checkpoints", "final", "step-"
RUN, RESULT, CONFIG_COPY = "run.json", "train.json", "train.yaml"
AVERAGE = "average.safetensors"  # in a training state: averaged weights
UNSENT = "unsent.jsonl"  # in a training state of an earlier version: what MLflow had not got


def step_folder(step: int) -> str:
    return f"{STEP}{step:08d}"


def step_of(folder: str) -> int | None:
    """The step of a checkpoint's folder; None of a name that no training gives."""
    number = folder.removeprefix(STEP)
    is_number = number.isascii() and number.isdecimal()
    return int(number) if is_number and folder == step_folder(int(number)) else None
