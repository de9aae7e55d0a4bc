"""The train stage on real Ray Train workers with DeepSpeed: learns, is killed, goes on, refuses."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient
from tests_support import tiny_config, tiny_controls

import caft
from caft.checkpoint import read_manifest
from caft.config import ImageConfig, SuperpixelConfig, load_config, to_yaml
from caft.errors import (
    CheckpointError,
    ClusterError,
    ConfigError,
    DataError,
    NumericsError,
    StorageError,
)
from pipelines import storage
from pipelines.evaluate.checkpoints import open_checkpoints
from pipelines.train.__main__ import run
from pipelines.train.checkpoints.store import CheckpointStore
from pipelines.train.config import TrainConfig
from pipelines.train.start import check_start

STEPS = 12
TRACED = ("epochs=3", "profile.start_step=3", "profile.steps=2", "profile.workers=[0,1]")


@pytest.fixture(scope="module")
def make_config(dataset_folder, tmp_path_factory):
    """Configurations of a tiny run of 12 steps: make_config(output, **changes)."""
    recipe = Path(__file__).parents[2] / "configs" / "train" / "demo.yaml"
    folder = tmp_path_factory.mktemp("train-tracking")

    def make(output, *overrides):
        base = [
            f"dataset={dataset_folder}", f"output={output}", "global_batch=8", "block_size=4",
            "batch_norm_images=4",
            "epochs=0.64", "optimizer.warmup_steps=4", "optimizer.lr=2.8e-5",
            "ingest.window_steps=3", "ingest.extra_parts=1", "log_every_steps=1",
            "checkpoint.every_steps=4", f"tracking.uri=sqlite:///{folder / 'mlflow.db'}",
            "progress_every_s=1", "scaling.max_failures=0",
        ]  # fmt: skip
        config = load_config(TrainConfig, recipe, [*base, *overrides])
        return config.model_copy(update={"model": tiny_config()})

    return make


@pytest.fixture(scope="module")
def finished(make_config, ray_cluster, tmp_path_factory) -> Path:
    """A run that nothing disturbed."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    run(make_config(output))
    return output


def losses_of(output: Path, config) -> dict[int, float]:
    run_id = read_manifest(output / "final")["mlflow_run_id"]
    history = MlflowClient(config.tracking.uri).get_metric_history(run_id, "loss/total")
    return {metric.step: metric.value for metric in history}


def test_a_run_ends_with_a_model_that_loads_and_a_curve_in_mlflow(finished, make_config):
    model = caft.load_model(finished / "final")
    assert model.config == tiny_config()
    losses = losses_of(finished, make_config(finished))
    assert sorted(losses) == list(range(1, STEPS + 1))
    assert losses[STEPS] < losses[1]
    kept = sorted(p.name for p in (finished / "checkpoints").iterdir())
    assert kept == ["step-00000008", "step-00000012"]


def test_a_run_goes_on_with_other_workers_and_another_zero_stage(
    finished, make_config, ray_cluster, tmp_path
):
    """From step 8 on one worker in micro-batches, weights and optimiser cut and offloaded."""
    newest = "step-00000008"
    shutil.copytree(finished / "checkpoints" / newest, tmp_path / "run" / "checkpoints" / newest)
    config = make_config(
        tmp_path / "run", "scaling.num_workers=1", "scaling.micro_batch=4",
        "deepspeed.zero_stage=3", "deepspeed.offload_optimizer=true",
    )  # fmt: skip
    run(config)
    expected, ours = losses_of(finished, config), losses_of(tmp_path / "run", config)
    assert sorted(ours) == [9, 10, 11, 12]
    for step, loss in ours.items():
        assert loss == pytest.approx(expected[step], rel=1e-5)


@pytest.mark.slow
def test_superpixels_of_the_model_s_own_network(make_config, ray_cluster, tmp_path):
    """SFCN runs in the workers, stays as it was, and travels with the checkpoint."""
    superpixels = SuperpixelConfig(method="sfcn")
    image = tiny_config().image.model_dump() | {"image_size_px": 96, "superpixels": superpixels}
    model = tiny_config(image=ImageConfig(**image))
    config = make_config(tmp_path / "run", "epochs=0.2", "deepspeed.precision=bfloat16")
    run(config.model_copy(update={"model": model}))
    trained = caft.load_model(tmp_path / "run" / "final")
    fresh = caft.create_model(model)
    for name, value in fresh.superpixel_network.state_dict().items():
        assert torch.equal(trained.superpixel_network.state_dict()[name], value), name
    assert not torch.equal(trained.fine_projection, fresh.fine_projection)
    missing = model.model_copy(
        update={"image": ImageConfig(**image | {"superpixels": superpixels.model_copy(
            update={"weights": "nowhere"})})}
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"superpixels\.weights: 'nowhere'"):
        run(config.model_copy(update={"model": missing, "output": str(tmp_path / "other")}))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("name", "steps", "traced"),
    [
        ("clip_softmax", STEPS, ()),
        pytest.param("flair", 57, TRACED, marks=pytest.mark.slow),
    ],
)
def test_controls_train_in_the_same_stage(make_config, ray_cluster, tmp_path, name, steps, traced):
    control = tiny_controls()[name]
    config = make_config(tmp_path / "run", *traced).model_copy(update={"model": control})
    if traced:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "profile").touch()
    run(config)
    assert caft.load_model(tmp_path / "run" / "final").config == control
    losses = losses_of(tmp_path / "run", config)  # too few steps to learn; test_controls.py asks
    assert sorted(losses) == list(range(1, steps + 1))
    assert np.isfinite(list(losses.values())).all()
    manifest = read_manifest(tmp_path / "run" / "final")
    client = MlflowClient(config.tracking.uri)
    logged = client.get_run(manifest["mlflow_run_id"]).data.metrics
    own = "whole" if name == "clip_softmax" else "part"
    assert {key for key in logged if key.endswith("_scale")} == {f"train/{own}_scale"}
    terms = {key.removeprefix("loss/") for key in manifest["metrics"]} - {"total"}
    parts = {"part_text_conditioned", "part_multi_positive"}
    assert terms == ({"whole"} if own == "whole" else parts)
    assert logged["train/skipped_steps"] == 0
    if traced:
        assert_traced(tmp_path / "run", client, manifest["mlflow_run_id"])


def assert_traced(output: Path, client: MlflowClient, run_id: str) -> None:
    """By configuration, and because a file in the output asked the running job: every named worker
    leaves a trace, and MLflow has it."""
    assert not (output / "profile").exists()
    traces = {path.name for path in (output / "profiles").glob("*.json.gz")}
    assert {f"step-00000003-worker-{rank}.json.gz" for rank in (0, 1)} <= traces
    assert len(traces) == 4  # the steps asked for come later
    logged = {Path(artifact.path).name for artifact in client.list_artifacts(run_id, "profiles")}
    assert traces < logged


def test_a_finished_run_is_not_trained_again(finished, make_config, capsys):
    run(make_config(finished))
    assert "finished before, at step 12" in capsys.readouterr().out


def test_a_final_model_that_is_lost_or_damaged_is_published_again(
    finished, make_config, tmp_path, capsys
):
    output = tmp_path / "run"
    shutil.copytree(finished, output)
    expected = caft.load_model(output / "final").state_dict()
    (output / "final" / "model.safetensors").write_bytes(b"half of it")
    for _ in range(2):
        run(make_config(output))
        printed = capsys.readouterr().out
        assert "published again from" in printed
        assert "finished before, at step 12" in printed
        found = caft.load_model(output / "final").state_dict()
        assert all(torch.equal(value, found[name]) for name, value in expected.items())
        assert read_manifest(output / "final", verify=True)["step"] == 12
        shutil.rmtree(output / "final")
    shutil.rmtree(output / "checkpoints")
    with pytest.raises(CheckpointError, match=r"cannot be published again .*train again, into"):
        run(make_config(output))


def test_another_configuration_is_refused_in_the_same_folder(finished, make_config):
    with pytest.raises(ConfigError, match=r"seed: .* holds a training made with 0, here it is 1"):
        run(make_config(finished, "seed=1"))


@pytest.mark.slow
def test_a_run_goes_on_from_a_checkpoint_of_another_run(finished, make_config, tmp_path):
    """As a cool-down does from a trunk; its final model is the average of weights."""
    before = finished / "checkpoints" / "step-00000008"
    config = make_config(
        tmp_path / "run", f"start_from={{checkpoint: {before}, state: true}}",
        "average={decay: 0.5}", "checkpoint.keep_every_steps=4", "checkpoint.keep=1",
    )  # fmt: skip
    run(config)
    expected, ours = losses_of(finished, config), losses_of(tmp_path / "run", config)
    assert sorted(ours) == [9, 10, 11, 12]
    for step, loss in ours.items():
        assert loss == pytest.approx(expected[step], rel=1e-5)
    last, final = tmp_path / "run" / "checkpoints" / "step-00000012", tmp_path / "run" / "final"
    undisturbed = caft.load_model(finished / "final").state_dict()
    averaged = caft.load_model(final).state_dict()
    for name, weights in caft.load_model(last).state_dict().items():
        torch.testing.assert_close(weights, undisturbed[name], rtol=1e-5, atol=1e-6)
    assert not torch.equal(averaged["fine_projection"], undisturbed["fine_projection"])
    found = [checkpoint.place for checkpoint in open_checkpoints([str(tmp_path / "run")])]
    assert found == [str(last), str(final)]  # an evaluation scores both


def test_a_start_that_does_not_serve_is_refused(finished, make_config, tmp_path):
    step_8 = finished / "checkpoints" / "step-00000008"

    def check(checkpoint, *overrides, dataset=None, steps=12, model=None):
        config = make_config(tmp_path / "run", f"start_from.checkpoint={checkpoint}", *overrides)
        fingerprint = dataset or read_manifest(step_8)["dataset_fingerprint"]
        check_start(config, model or tiny_config(), fingerprint, steps)

    state = "start_from.state=true"
    check(step_8, state)
    with pytest.raises(CheckpointError, match="nowhere: no checkpoint folder"):
        check(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"model\.embed_dim=16, this run has 32"):
        check(step_8, model=tiny_config(embed_dim=32))
    check(step_8, dataset="another")
    with pytest.raises(CheckpointError, match=r"another dataset .*accept_other_dataset=true"):
        check(step_8, state, dataset="another")
    check(step_8, state, "start_from.accept_other_dataset=true", dataset="another")
    with pytest.raises(CheckpointError, match="final has no training_state"):
        check(finished / "final", state)
    with pytest.raises(CheckpointError, match="global_batch 8, this run has 16"):
        check(step_8, state, "global_batch=16")
    check(step_8, "global_batch=16")
    with pytest.raises(ConfigError, match=r"ends at step 8, .* at step 8 already; raise epochs"):
        check(step_8, state, steps=8)
    damaged = shutil.copytree(step_8, tmp_path / "damaged")
    (damaged / "training_state" / "optimizer.safetensors").write_bytes(b"half of it")
    with pytest.raises(CheckpointError, match="damaged"):
        check(damaged, state)


@pytest.mark.slow
def test_a_run_into_a_bucket(finished, make_config, tmp_path, bucket):
    """Checkpoints, model and records in S3; on a cluster of its own, as anybody would start it."""
    output = f"{bucket}/first"
    config = make_config(output, "scaling.num_workers=1", "scaling.wait_s=0")
    path = tmp_path / "train.yaml"
    path.write_text(to_yaml(config))
    command = [sys.executable, "-m", "pipelines.train", str(path)]
    first = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert first.returncode == 0, first.stdout + first.stderr
    assert f"finished at step 12: {output}/final" in first.stdout
    again = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert "finished before, at step 12" in again.stdout
    with storage.opened(output) as fetched:
        assert {path.name for path in fetched.iterdir()} == {
            "checkpoints", "final", "run.json", "tracking", "train.json", "train.yaml",
        }  # fmt: skip
        kept = sorted(path.name for path in (fetched / "checkpoints").iterdir())
        assert kept == ["step-00000008", "step-00000012"]
        read_manifest(fetched / "checkpoints" / kept[-1], verify=True)
        ours = caft.load_model(fetched / "final").state_dict()
    for name, weights in caft.load_model(finished / "final").state_dict().items():
        # One worker sums in another order, and Adam makes steps of what is left of tiny gradients.
        torch.testing.assert_close(ours[name], weights, rtol=1e-5, atol=1e-5)


def test_a_damaged_newest_checkpoint_is_passed_over(finished, tmp_path, capsys):
    shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints")
    newest = tmp_path / "checkpoints" / "step-00000012"
    (newest / "model.safetensors").write_bytes(b"half of it")
    store = CheckpointStore(str(tmp_path))
    assert store.newest_whole(tiny_config()) == 8
    assert f"passing over {newest}" in capsys.readouterr().out
    Path(store.path(8), "manifest.json").unlink()
    assert store.newest_whole(tiny_config()) is None


def test_checkpoints_of_another_model_are_refused(finished):
    with pytest.raises(CheckpointError, match=r"model\.embed_dim=16, this run has 32"):
        CheckpointStore(str(finished)).newest_whole(tiny_config(embed_dim=32))


def test_bad_inputs_start_nothing(make_config, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"no manifest\.json"):
        run(make_config(tmp_path / "run", f"dataset={tmp_path}"))
    with pytest.raises(DataError, match="no row has split 'nothing'"):
        run(make_config(tmp_path / "run", "split=nothing"))
    with pytest.raises(DataError, match="fewer than global_batch 4096"):
        run(make_config(tmp_path / "run", "global_batch=4096"))
    cooldown = ["optimizer.schedule=constant_cooldown", "optimizer.cooldown_steps=12"]
    with pytest.raises(ConfigError, match="cool-down of 12 do not fit into 12 steps"):
        run(make_config(tmp_path / "run", *cooldown, "optimizer.warmup_steps=1"))
    with pytest.raises(ConfigError, match=r"stage is 3, deepspeed\.zero_stage here is 0"):
        run(make_config(tmp_path / "run", "deepspeed.file.zero_optimization.stage=3"))
    with pytest.raises(ConfigError, match=r"lanes 4 must be a multiple of num_workers 3"):
        make_config(tmp_path / "run", "scaling.num_workers=3")
    with pytest.raises(CheckpointError, match="nowhere: no checkpoint folder"):
        run(make_config(tmp_path / "run", f"start_from.checkpoint={tmp_path / 'nowhere'}"))
    full = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: full)
    with pytest.raises(StorageError, match="1 MiB free, about 39 MiB needed"):
        run(make_config(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_cluster_without_a_free_cpu_is_refused(ray_cluster, make_config, tmp_path):
    with pytest.raises(ClusterError, match="4 workers of 1 CPUs and one CPU to decode"):
        run(make_config(tmp_path / "run", "scaling.num_workers=4", "scaling.wait_s=0"))


def test_a_run_that_diverges_stops_and_names_step_and_batch(
    make_config, dataset_folder, ray_cluster, tmp_path
):
    config = make_config(tmp_path / "run", "optimizer.lr=1.0e+30", "optimizer.warmup_steps=0")
    with pytest.raises(NumericsError, match=r"step 2: .* not finite.*lower optimizer\.lr"):
        run(config)
    (line,) = (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()
    parts = [pq.read_table(part, columns=["key"]) for part in Path(dataset_folder).glob("part-*")]
    known = {key for part in parts for key in part["key"].to_pylist()}
    batch = json.loads(line)["batch"]
    assert len(batch) == len(set(batch)) == 8
    assert set(batch) <= known
