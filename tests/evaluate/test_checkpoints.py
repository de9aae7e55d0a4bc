"""Which models a configuration's names stand for, and what they are called."""

import shutil

import pytest

from caft.checkpoint import read_manifest, write_manifest
from caft.config import validate
from caft.errors import CheckpointError, ConfigError
from pipelines.evaluate.checkpoints import _labels, open_checkpoints
from pipelines.evaluate.config import EvaluateConfig


def training_run(folder, checkpoint, steps, final=None):
    """A training run's output with a checkpoint at each step."""
    for step in steps:
        copy(checkpoint, folder / "checkpoints" / f"step-{step:08d}", step)
    if final is not None:
        copy(checkpoint, folder / "final", final)
    return str(folder)


def copy(checkpoint, target, step):
    shutil.copytree(checkpoint, target)
    write_manifest(target, read_manifest(target) | {"step": step})


def found(*names):
    return [(c.label, c.step) for c in open_checkpoints(names)]


def test_a_folder_stands_for_itself(checkpoint):
    (only,) = open_checkpoints([str(checkpoint)])
    assert (only.place, only.model, only.step) == (str(checkpoint), "caft_xs", 7)
    assert only.run_id
    assert only.adapter is not None


def test_a_run_s_output_stands_for_its_finished_checkpoints(checkpoint, tmp_path):
    run = training_run(tmp_path / "run", checkpoint, [5, 10, 20], final=30)
    (tmp_path / "run" / "checkpoints" / "step-00000010" / "manifest.json").unlink()
    assert found(run) == [("step-00000005", 5), ("step-00000020", 20), ("final", 30)]
    for name in ("step-abc", "step-00000005.bak", "step-5", "step-"):  # copies that a user made
        copy(checkpoint, tmp_path / "run" / "checkpoints" / name, 5)
    assert len(found(run)) == 3
    # named once more by itself, a checkpoint is not scored twice
    again = str(tmp_path / "run" / "checkpoints" / "step-00000005")
    assert len(found(run, again)) == 3


def test_the_last_step_is_not_scored_again_as_the_final_one(checkpoint, tmp_path):
    assert found(training_run(tmp_path, checkpoint, [5, 10], final=10)) == [
        ("step-00000005", 5),
        ("step-00000010", 10),
    ]


def test_a_run_without_a_finished_checkpoint_is_named(checkpoint, tmp_path):
    training_run(tmp_path, checkpoint, [5])
    (tmp_path / "checkpoints" / "step-00000005" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="none of its 1 checkpoints is finished"):
        open_checkpoints([str(tmp_path)])


def test_labels_are_as_short_as_tells_them_apart():
    assert _labels(["/a/run1/checkpoints/step-1", "/a/run1/final"]) == ["step-1", "final"]
    assert _labels(["/a/run1/final", "/a/run2/final"]) == ["run1-final", "run2-final"]
    assert _labels(["hf:openai/clip", "open_clip:ViT-B-16:openai"]) == ["clip", "openai"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"checkpoint": []}, "at least one checkpoint"),
        ({"alphas": [0.5, 1.5]}, "a weight lies from 0 to 1, not 1.5"),
    ],
)
def test_impossible_values_are_refused(settings, change, said):
    with pytest.raises(ConfigError, match=said):
        validate(EvaluateConfig, settings | change, "evaluate.yaml")
