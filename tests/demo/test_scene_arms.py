"""What the comparisons on hard scenes rest on: scenes that do not repeat, and captions as asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scene_arms
import torch

from caft.scoring import score_names


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scenes")


def test_scenes_are_drawn_once_and_serve_shorter_trainings(folder: Path) -> None:
    many = scene_arms.training_scenes(folder, 40)
    few = scene_arms.training_scenes(folder, 10)
    assert [path.name for path in folder.iterdir()] == ["train-40"]
    assert torch.equal(few.images, many.images[:10])
    assert few.sentences == many.sentences[:10]
    assert len({str(sentences) for sentences in many.sentences}) == 40


def test_no_scene_comes_twice_before_all_came_once() -> None:
    rows = scene_arms._batches(5 * scene_arms.BATCH, seed=3)
    epoch = np.concatenate([rows(step) for step in range(5)])
    assert len(np.unique(epoch)) == len(epoch)
    assert not np.array_equal(rows(0), rows(5))


def test_a_summary_is_told_first_last_or_not_at_all(folder: Path) -> None:
    scenes = scene_arms.training_scenes(folder, 10)
    summary, plain = scenes.summaries[0], scenes.told("plain")[0]
    assert scenes.told("summary first")[0] == [summary, *plain]
    assert scenes.told("summary last")[0] == [*plain, summary]
    assert summary not in plain


@pytest.mark.parametrize("name", ["caft_xs", "flair_xs"])
def test_a_trunk_gives_a_model_of_every_length_that_can_be_tested(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = scene_arms.optimizer_of(1e-3).model_copy(update={"warmup_steps": 1})
    monkeypatch.setattr(scene_arms, "optimizer_of", lambda lr: short)
    scenes = scene_arms.training_scenes(folder, 40)
    runs = list(scene_arms.train(name, scenes, scenes.sentences, 1e-3, 0, [2, 3]))
    assert [length for length, _, _ in runs] == [2, 3]
    assert runs[0][2] < runs[1][2]
    model = runs[0][1]
    hits = scene_arms.found(model, scenes, scenes.sentences, group=4)
    assert list(hits) == list(score_names(model.config))
    assert all(len(found) == 40 and set(found) <= {0.0, 0.5, 1.0} for found in hits.values())
