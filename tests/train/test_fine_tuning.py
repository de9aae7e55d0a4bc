"""Fine-tuning through the train stage: at every ZeRO stage, killed and resumed, on other data."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests_support import tiny_config
from training_support import batch_of, run_in_processes, trained_config

import caft
from caft.checkpoint import read_manifest, save_weights, write_manifest
from caft.config import load_config
from caft.errors import CheckpointError, ConfigError
from pipelines.train.__main__ import run
from pipelines.train.config import TrainConfig
from pipelines.train.distributed import TrainingModel

RECIPE = Path(__file__).parents[2] / "configs" / "train" / "demo.yaml"
FROZEN, DECAY, LR = "image_encoder.*", 0.5, 1e-3


def one_update(rank: int, folder: Path) -> None:
    """The weights before and after one update, at every ZeRO stage."""
    from caft.fine_tuning import freeze_
    from pipelines.train.deepspeed.engine import start_engine
    from pipelines.train.deepspeed.sharding import whole_moments, whole_weights
    from pipelines.train.step import apply_gradients, compute_gradients

    for stage in range(4):
        config = load_config(
            TrainConfig,
            None,
            [
                "dataset=none", "output=none", "global_batch=8", "block_size=4",
                "batch_norm_images=4", "ingest.lanes=4", "scaling.num_workers=2",
                f"deepspeed.zero_stage={stage}", "optimizer.weight_decay=0",
                "optimizer.eps=1.0e-12", "start_from.checkpoint=none",
                f"fine_tune={{freeze: ['{FROZEN}'], layer_decay: {DECAY}}}",
            ],
        )  # fmt: skip
        torch.manual_seed(0)
        model = caft.create_model(trained_config(tiny_config()))
        freeze_(model, config.fine_tune.freeze)
        trained = TrainingModel(model, config.block_size, batch_norm_images=4)
        engine = start_engine(trained, config)
        before = whole_weights(model)
        compute_gradients(engine, trained, batch_of(0, 8, rank, 2), 0, config)
        apply_gradients(engine, trained, lr=LR)
        after, moments = whole_weights(model), whole_moments(engine, model)
        if rank == 0:
            moved = {name: after[name] - value for name, value in before.items()}
            save_file(moved, folder / f"{stage}.safetensors")
            save_file(moments, folder / f"{stage}-moments.safetensors")
        engine.destroy()


@pytest.fixture(scope="module")
def updates(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("updates")
    run_in_processes(one_update, 2, folder)
    return folder


@pytest.mark.parametrize("stage", range(4))
def test_frozen_parameters_stay_and_layers_move_by_their_own_rate(stage, updates):
    """The first update of Adam moves each weight that has a gradient by the learning rate."""
    from caft.fine_tuning import layer_scales

    model = caft.create_model(trained_config(tiny_config()))
    scales, checked = layer_scales(model, DECAY), 0
    for name, moved in load_file(updates / f"{stage}.safetensors").items():
        if name.startswith("image_encoder."):
            assert not moved.any(), name
        elif name in scales:
            largest = moved.abs().max().item()
            if largest:  # tokens that no caption had, and scales at the end of their range
                assert largest == pytest.approx(LR * scales[name], rel=1e-2), name
                checked += 1
    assert checked > 30
    moments = load_file(updates / f"{stage}-moments.safetensors")
    assert moments
    assert not [name for name in moments if name.startswith("image_encoder.")]


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """A model that something else was trained on."""
    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("start") / "final"
    folder.mkdir()
    model = caft.create_model(trained_config(tiny_config()))
    save_weights(model, folder)
    about = {"dataset": "/elsewhere", "dataset_fingerprint": "other", "decontamination": {}}
    write_manifest(folder, {"step": 9, **about})
    return folder


@pytest.fixture(scope="module")
def make_config(dataset_folder, start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tracking")

    def make(output, *overrides) -> TrainConfig:
        base = [
            f"dataset={dataset_folder}", f"output={output}", "global_batch=8", "block_size=4",
            "batch_norm_images=4", "epochs=0.22", "optimizer.warmup_steps=0", "optimizer.lr=1e-3",
            "ingest.window_steps=3", "ingest.extra_parts=1", "log_every_steps=1",
            "checkpoint.every_steps=2", "model=start_from", f"start_from.checkpoint={start}",
            "scaling.num_workers=1", "scaling.max_failures=0",
            f"fine_tune={{freeze: ['{FROZEN}'], layer_decay: 0.9, start_share: 0.25}}",
            f"tracking.uri=sqlite:///{folder / 'mlflow.db'}",
        ]  # fmt: skip
        return load_config(TrainConfig, RECIPE, [*base, *overrides])

    return make


@pytest.fixture(scope="module")
def tuned(make_config, ray_cluster, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("tuned") / "run"
    run(make_config(output))
    return output


def test_the_final_model_holds_a_share_of_the_start(tuned, start):
    newest = sorted((tuned / "checkpoints").iterdir())[-1]
    before, last = caft.load_model(start).state_dict(), caft.load_model(newest).state_dict()
    for name, value in caft.load_model(tuned / "final").state_dict().items():
        expected = before[name] * 0.25 + last[name] * 0.75 if value.is_floating_point() else value
        torch.testing.assert_close(value, expected)
        if name.startswith("image_encoder."):
            assert torch.equal(last[name], before[name])
    assert not torch.equal(last["part_projection"], before["part_projection"])
    manifest = read_manifest(tuned / "final")
    assert manifest["start"]["checkpoint"] == str(start)
    assert manifest["start"]["dataset"] == "/elsewhere"


def test_a_lost_final_model_is_mixed_again(tuned, make_config):
    expected = caft.load_model(tuned / "final").state_dict()
    shutil.rmtree(tuned / "final")
    run(make_config(tuned))
    for name, value in caft.load_model(tuned / "final").state_dict().items():
        torch.testing.assert_close(value, expected[name])


def test_what_cannot_be_fine_tuned_is_refused_before_anything_starts(
    make_config, start, tuned, tmp_path
):
    output = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"fine_tune\.freeze: 'visual\.\*' matches no parameter"):
        run(make_config(output, "fine_tune.freeze=['visual.*']"))
    with pytest.raises(CheckpointError, match=r"nowhere: no checkpoint folder"):
        run(make_config(output, f"start_from.checkpoint={tmp_path / 'nowhere'}"))
    with pytest.raises(ConfigError, match=r"fine_tune begins at step 0: set start_from\.state"):
        make_config(output, "start_from.state=true")
    with pytest.raises(ConfigError, match=r"fine_tune: set start_from\.checkpoint"):
        make_config(output, "start_from=null", "model=caft_xs")
    with pytest.raises(ConfigError, match=r"model: set start_from\.checkpoint"):
        make_config(output, "start_from=null", "fine_tune=null")
    assert not (output / "run.json").exists()


def test_a_start_that_was_exchanged_is_refused(tuned, make_config, start, tmp_path):
    """The path is the same, the weights are not."""
    output, other = tmp_path / "run", tmp_path / "start"
    shutil.copytree(start, other)
    output.mkdir()
    known = json.loads((tuned / "run.json").read_text())
    known["start"]["weights"] = "0" * 64
    (output / "run.json").write_text(json.dumps(known))
    with pytest.raises(ConfigError, match=r"was begun with other weights than are in .* now"):
        run(make_config(output, f"start_from.checkpoint={other}"))
