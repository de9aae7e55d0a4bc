"""Checkpoints of a run: which stay, on a disk and in a bucket; saved beside training; averages."""

import json
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tests_support import tiny_config
from training_support import batch_of, run_in_processes, trained_config

import caft
from caft.checkpoint import WEIGHTS, load_weights, read_manifest, save_weights, write_manifest
from caft.config import load_config
from caft.errors import StorageError
from caft.model import CAFT
from pipelines import storage
from pipelines.train.checkpoints.store import CheckpointStore, publish
from pipelines.train.config import CheckpointConfig, TrainConfig
from pipelines.train.distributed import TrainingModel

WORKERS, GLOBAL_BATCH = 2, 8
DECAY = 0.5


def write_small(folder: Path, **info) -> None:
    """A checkpoint with nothing but what the store looks at."""
    save_weights(caft.create_model(tiny_config()), folder)
    (folder / "training_state").mkdir()
    (folder / "training_state" / "state").write_text("x")
    write_manifest(folder, info)


def test_a_checkpoint_is_there_once_it_is_whole(place, capsys):
    store = CheckpointStore(place)
    assert store.newest_step() == 0
    assert store.newest_whole(tiny_config()) is None
    for step in (4, 8):
        store.publish(step, write_small)
    with pytest.raises(ZeroDivisionError):
        store.publish(12, lambda folder: write_small(folder) or 1 // 0)
    storage.delete_file(storage.join(store.path(12), "manifest.json"))  # of a killed process
    storage.write_bytes(storage.join(store.path(16), WEIGHTS), b"half")
    for name in ("step-abc", "step-00000200.bak", "step-200", "step-"):
        storage.write_bytes(f"{place}/checkpoints/{name}/manifest.json", b"{}")
    assert {4, 8, 16} <= set(store.steps()) <= {4, 8, 12, 16}
    assert store.newest_step() == 8
    assert store.newest_whole(tiny_config()) == 8
    storage.write_bytes(storage.join(store.path(8), "training_state", "state"), b"y")
    assert store.newest_step() == 8
    assert store.newest_whole(tiny_config()) == 4
    said = capsys.readouterr().out
    assert f"passing over {store.path(16)}: no manifest.json" in said
    assert f"passing over {store.path(8)}: " in said
    assert "damaged" in said
    with storage.opened(store.path(4)) as folder:
        caft.load_model(folder)
    store.publish(16, write_small)  # what is left of it goes first
    assert store.newest_whole(tiny_config()) == 16


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/final: cannot be written"):
        publish(str(tmp_path / "file" / "final"), write_small)


LOSSES = {2: 5.0, 4: 1.0, 6: 3.0, 8: 2.0, 10: float("nan"), 12: 4.0}


@pytest.mark.parametrize(
    ("rules", "stay"),
    [
        ({"keep": 2}, [10, 12]),
        ({"keep": 1, "keep_every_steps": 4}, [4, 8, 12]),
        ({"keep": 1, "at_steps": (6, 7)}, [6, 12]),
        ({"keep": 1, "keep_best": 2}, [4, 8, 12]),
        ({"keep": 1, "keep_best": 1, "best_is": "highest"}, [2, 12]),
        ({"keep": 1, "keep_best": 2, "best_metric": "eval/whole_t2i_r1", "best_is": "highest"},
         [6, 8, 12]),
        ({"keep": 1, "keep_best": 3, "best_metric": "no such"}, [12]),
    ],
)  # fmt: skip
def test_newest_regular_and_best_checkpoints_stay(place, rules, stay):
    """A loss is in the manifest; held-out scores are known later, and not of every step."""
    store = CheckpointStore(place)
    scores = {6: 0.5, 8: 0.7}
    store.scores = lambda step: {"eval/whole_t2i_r1": scores[step]} if step in scores else {}
    for step, loss in LOSSES.items():
        text = json.dumps({"metrics": {"loss/total": loss}})
        storage.write_bytes(storage.join(store.path(step), "manifest.json"), text.encode())
    storage.write_bytes(storage.join(store.path(3), WEIGHTS), b"of a process that was killed")
    storage.write_bytes(storage.join(store.path(14), WEIGHTS), b"under way")
    store.prune(CheckpointConfig(**rules))
    assert store.steps() == [*stay, 14]


@given(
    st.sets(st.integers(1, 40), min_size=1, max_size=12),
    st.integers(1, 4),
    st.none() | st.integers(1, 10),
)
def test_the_newest_always_stays(tmp_path_factory, steps, keep, every):
    store = CheckpointStore(str(tmp_path_factory.mktemp("store")))
    rules = CheckpointConfig(keep=keep, keep_every_steps=every)
    for step in sorted(steps):
        storage.write_json(storage.join(store.path(step), "manifest.json"), {})
        store.prune(rules)
    stay = set(sorted(steps)[-keep:]) | {s for s in steps if every and s % every == 0}
    assert store.steps() == sorted(stay)


def test_checkpoints_are_due_at_regular_and_at_named_steps():
    rules = CheckpointConfig(every_steps=10, at_steps=(4, 25))
    assert [step for step in range(1, 31) if rules.due(step)] == [4, 10, 20, 25, 30]


class SlowStore(CheckpointStore):
    """A disk that a checkpoint of step 2 waits for until it may go on."""

    def __init__(self, output: str) -> None:
        super().__init__(output)
        self.go_on = threading.Event()

    def publish(self, step: int, write) -> None:
        if step == 2:
            assert self.go_on.wait(60)
        super().publish(step, write)


def make_run(rank: int, zero: int, checkpoint: Path | None = None):
    """A function that takes a step, and what a saver needs."""
    from pipelines.train.checkpoints.state import restore_state, saved_average
    from pipelines.train.deepspeed.engine import start_engine
    from pipelines.train.deepspeed.sharding import WeightAverage
    from pipelines.train.step import apply_gradients, compute_gradients

    overrides = [
        "dataset=none", "output=none", f"global_batch={GLOBAL_BATCH}", "block_size=4",
        "batch_norm_images=4", "ingest.lanes=4", f"scaling.num_workers={WORKERS}",
        f"deepspeed.zero_stage={zero}", f"average={{decay: {DECAY}, every_steps: 2}}",
    ]  # fmt: skip
    config = load_config(TrainConfig, None, overrides)
    torch.manual_seed(0)
    model = caft.create_model(trained_config(tiny_config()))
    if checkpoint is not None:
        load_weights(model, checkpoint / WEIGHTS)
    trained = TrainingModel(model, config.block_size, batch_norm_images=config.batch_norm_block)
    engine = start_engine(trained, config)
    saved = None
    if checkpoint is not None:
        restore_state(checkpoint, engine, model)
        saved = saved_average(checkpoint)
    average = WeightAverage(model, config.average, saved)

    def take(step: int) -> None:
        batch = batch_of(step, GLOBAL_BATCH, rank, WORKERS)
        compute_gradients(engine, trained, batch, step - 1, config)
        apply_gradients(engine, trained, lr=1e-2)
        average.update(step)

    return take, engine, model, average


def train_and_save(rank: int, folder: Path, zero: int) -> None:
    """Six steps, of which 2, 4 and 6 are saved; then 5 and 6 again, from checkpoint 4. What the
    saver must have written is written beside it, by hand and at once."""
    from pipelines.train.checkpoints.saver import Saver
    from pipelines.train.deepspeed.sharding import whole_weights

    take, engine, model, average = make_run(rank, zero)
    store = SlowStore(str(folder))
    flushed: list[list[int]] = []  # which checkpoints were there when the log was written
    saver = Saver(
        store, CheckpointConfig(keep=9), engine, model, average, {"mark": zero},
        before=lambda: flushed.append(store.steps()),
    )  # fmt: skip
    for step in range(1, 7):
        take(step)
        weights = whole_weights(model)
        if rank == 0:
            save_weights(model, folder / f"now-{step}", weights)
        if step == 3:  # the copy of step 2 must not have moved with the weights
            assert store.newest_step() == 0
            store.go_on.set()
        if step % 2 == 0:
            saver.save(step, {"loss/total": float(step)})
    saver.close(str(folder / "final"), {"loss/total": 6.0})
    if rank == 0:
        assert flushed == [[], [2], [2, 4]]
        assert saver.metrics().keys() == {
            "train/checkpoint_blocked_s",
            "train/checkpoint_write_s",
        }
    engine.destroy()
    take, engine, model, average = make_run(rank, zero, Path(store.path(4)))
    again = CheckpointStore(str(folder / "again"))
    saver = Saver(again, CheckpointConfig(), engine, model, average, {}, step=4)
    saver.save(4, {})  # is there
    for step in (5, 6):
        take(step)
    saver.save(6, {})
    saver.close()
    engine.destroy()


@pytest.fixture(scope="module", params=[1, 3])
def saved(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    run_in_processes(train_and_save, WORKERS, folder, request.param)
    return folder


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def test_training_goes_on_while_a_checkpoint_of_its_step_is_written(saved):
    store = CheckpointStore(str(saved))
    assert store.steps() == [2, 4, 6]
    for step in store.steps():
        manifest = read_manifest(store.path(step), verify=True)
        assert manifest["step"] == step
        assert manifest["metrics"] == {"loss/total": float(step)}
        for name, value in weights_in(saved / f"now-{step}").items():
            assert torch.equal(weights_in(Path(store.path(step)))[name], value), name


def test_the_final_model_is_the_average_of_the_weights(saved):
    """Updates after steps 2, 4 and 6; the first ones forget the start sooner than DECAY would."""
    now = {step: weights_in(saved / f"now-{step}") for step in range(1, 7)}
    final = weights_in(saved / "final")
    assert read_manifest(saved / "final", verify=True)["averaged"]
    torch.manual_seed(0)
    fresh = caft.create_model(trained_config(tiny_config()))
    trained = {name: p.detach() for name, p in fresh.named_parameters() if p.requires_grad}
    for name, value in final.items():
        if name not in trained:
            assert torch.equal(value, now[6][name]), name
            continue
        average = trained[name]
        for n, step in enumerate((2, 4, 6), start=1):
            decay = min(DECAY, (1 + n) / (10 + n))
            average = decay * average + (1 - decay) * now[step][name]
        torch.testing.assert_close(value, average, rtol=1e-5, atol=1e-6, msg=name)
    assert isinstance(caft.load_model(saved / "final"), CAFT)


def test_a_run_that_goes_on_saves_what_the_undisturbed_one_saved(saved):
    ours = Path(CheckpointStore(str(saved / "again")).path(6))
    undisturbed = Path(CheckpointStore(str(saved)).path(6))
    assert CheckpointStore(str(saved / "again")).steps() == [6]
    for name in (WEIGHTS, "training_state/average.safetensors"):
        expected = load_file(undisturbed / name)
        for key, value in load_file(ours / name).items():
            torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6, msg=key)
    expected = load_file(undisturbed / "training_state" / "optimizer.safetensors")
    for key, value in load_file(ours / "training_state" / "optimizer.safetensors").items():
        atol = 1e-5 * expected[key].abs().max().item() + 1e-12
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=atol, msg=key)
