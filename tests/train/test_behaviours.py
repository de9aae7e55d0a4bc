"""What changed without a key: a run begun by another version is refused by name, or read."""

import json
import shutil

import pytest
import torch
from tests_support import tiny_config

import caft
from caft.checkpoint import TRAINING_STATE, save_weights, write_manifest
from caft.config import load_config
from caft.errors import CheckpointError, ConfigError
from pipelines.behaviours import BEHAVIOURS, first_change, numbers
from pipelines.train.config import TrainConfig
from pipelines.train.identity import BEHAVIOURS as OF_TRAINING
from pipelines.train.identity import require_same_training
from pipelines.train.start import check_start

NOW = {"behaviours": numbers(OF_TRAINING)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A function that writes a checkpoint of step 4 whose manifest holds `info` too."""
    torch.manual_seed(0)
    model = caft.create_model(tiny_config())

    def write(folder, info):
        save_weights(model, folder)
        (folder / TRAINING_STATE).mkdir()
        write_manifest(folder, {"step": 4, "global_batch": 8, **info})
        return folder

    return write


@pytest.mark.parametrize("name", OF_TRAINING)
def test_a_run_without_a_checkpoint_that_began_otherwise_is_refused_by_name(tmp_path, name):
    require_same_training(str(tmp_path), finished=False)  # nothing was begun
    begun = {"identity": "0", "run_id": "1", "behaviours": NOW["behaviours"] | {name: 1}}
    (tmp_path / "run.json").write_text(json.dumps(begun))
    with pytest.raises(ConfigError, match=rf"unfinished training .*: {name} \(.*\) is 1 there"):
        require_same_training(str(tmp_path), finished=False)
    (tmp_path / "run.json").write_text(json.dumps(begun | NOW))
    require_same_training(str(tmp_path), finished=False)


def test_a_run_of_a_version_before_the_numbers_is_refused(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"identity": "0", "run_id": "1"}))
    with pytest.raises(ConfigError, match=r"caption_sampling \(how sub-captions .*is 1 there"):
        require_same_training(str(tmp_path), finished=False)


def test_from_a_checkpoint_on_the_initial_values_of_another_version_do_not_matter(
    checkpoint, tmp_path
):
    step = tmp_path / "checkpoints" / "step-00000004"
    (tmp_path / "run.json").write_text(json.dumps({"run_id": "1"}))
    checkpoint(step, {"behaviours": NOW["behaviours"] | {"initial_values": 1}})
    require_same_training(str(tmp_path), finished=False)
    shutil.rmtree(step)
    checkpoint(step, {})
    with pytest.raises(ConfigError, match=r"caption_sampling .*; finish it with that version or"):
        require_same_training(str(tmp_path), finished=False)
    assert caft.load_model(step).config == tiny_config()  # read as what it was


def test_going_on_from_another_run_s_step_mixes_nothing_but_its_weights_serve(checkpoint, tmp_path):
    old, new = (checkpoint(tmp_path / name, info) for name, info in (("old", {}), ("new", NOW)))
    base = ["dataset=none", "output=none", "global_batch=8", "ingest.lanes=4"]

    def start(folder, state):
        overrides = [f"start_from.checkpoint={folder}", f"start_from.state={state}"]
        config = load_config(TrainConfig, None, [*base, *overrides])
        return check_start(config, tiny_config(), "fingerprint", total_steps=9)

    start(new, "true")
    start(old, "false")
    with pytest.raises(CheckpointError, match=r"old: caption_sampling .*set start_from\.state=fal"):
        start(old, "true")


def test_a_number_of_a_later_version_is_another_one_too():
    later = {name: behaviour.number + 1 for name, behaviour in BEHAVIOURS.items()}
    assert "is 3 there and 2 in this version" in first_change(later, OF_TRAINING)
    assert first_change(numbers(OF_TRAINING), OF_TRAINING) is None
