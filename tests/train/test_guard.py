"""A step that is not finite changes nothing on any worker, is named by its samples, and ends the
run or is skipped; float16 overflow lowers the loss scale instead."""

import json
import re
from pathlib import Path

import deepspeed
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from tests_support import tiny_config
from training_support import batch_of, run_in_processes, trained_config

import caft
from caft.checkpoint import WEIGHTS, load_weights
from caft.config import load_config
from caft.errors import CAFTError
from pipelines.train.config import TrainConfig
from pipelines.train.distributed import TrainingModel
from pipelines.train.schedule import learning_rate

pytestmark = pytest.mark.timeout(900)  # all processes run in the first test's set-up

WORKERS, GLOBAL_BATCH, TOTAL_STEPS = 2, 8, 4
BAD_TOKEN = 1500  # no random caption has it
STAGES = {
    "0": ["deepspeed.zero_stage=0", "optimizer.grad_clip=20.0"],
    "1": ["deepspeed.zero_stage=1"],
    "2_offloaded": ["deepspeed.zero_stage=2", "deepspeed.offload_optimizer=true"],
    "3": ["deepspeed.zero_stage=3", "scaling.micro_batch=4"],
    "3_offloaded": [
        "deepspeed.zero_stage=3",
        "deepspeed.offload_optimizer=true",
        "deepspeed.offload_parameters=true",
    ],
}
FLOAT16 = [
    "deepspeed.zero_stage=1",
    "deepspeed.precision=float16",
    "deepspeed.file.fp16.initial_scale_power=12",
    "deepspeed.file.fp16.hysteresis=1",
]
COOLDOWN = ["optimizer.schedule=constant_cooldown", "optimizer.cooldown_steps=2"]


def make_config(folder: Path, *overrides: str) -> TrainConfig:
    base = [
        "dataset=none", f"output={folder}", f"global_batch={GLOBAL_BATCH}", "block_size=4",
        "batch_norm_images=4", "ingest.lanes=2", f"scaling.num_workers={WORKERS}",
        "optimizer.lr=1.0e-3", "optimizer.warmup_steps=1", "guard.policy=skip",
    ]  # fmt: skip
    return load_config(TrainConfig, None, [*base, *overrides])


def break_on_bad_samples(model: caft.CAFT) -> None:
    """White images and captions with one token make features that are not finite, as an overflow
    in some layer would."""

    def of_images(_, given, tokens):
        white = given[0].flatten(1).amin(dim=1) > 1.9  # pixels are normalised
        return tokens._replace(fine=torch.where(white[:, None, None], torch.inf, tokens.fine))

    def of_texts(_, given, embedded):
        bad = given[0].owners[given[0].tokens == BAD_TOKEN].unique()
        return embedded.index_fill(0, bad, torch.nan)

    model.image_encoder.register_forward_hook(of_images)
    model.part_text_encoder.register_forward_hook(of_texts)


class Run:
    """A run on this worker of a group, step by step; from a checkpoint, if there is one."""

    def __init__(self, config: TrainConfig, rank: int, checkpoint: Path | None = None) -> None:
        from pipelines.train.checkpoints.state import restore_state
        from pipelines.train.deepspeed.engine import start_engine
        from pipelines.train.guard import Guard

        self.config, self.rank = config, rank
        torch.manual_seed(0)
        self.model = caft.create_model(trained_config(tiny_config()))
        if checkpoint is not None:
            load_weights(self.model, checkpoint / WEIGHTS)
        self.trained = TrainingModel(self.model, 4, batch_norm_images=config.batch_norm_block)
        break_on_bad_samples(self.model)
        self.engine = start_engine(self.trained, config)
        step = restore_state(checkpoint, self.engine, self.model) if checkpoint else 0
        self.guard = Guard(config, self.engine, self.trained, step)

    def step(self, step: int, bad: bool = False) -> bool:
        """Take a step, counted from 0; bad ones have a bad image and a bad caption on the second
        worker. Returns whether it was skipped."""
        from pipelines.train.step import apply_gradients, compute_gradients

        batch = batch_of(step, GLOBAL_BATCH, self.rank, WORKERS)
        if bad and self.rank == 1:
            batch.images[2], batch.tokens[1, 0, 0] = 255, BAD_TOKEN
        loss = compute_gradients(self.engine, self.trained, batch, step, self.config)
        lr = learning_rate(step, TOTAL_STEPS, self.config.optimizer)
        skipped = apply_gradients(self.engine, self.trained, lr)
        self.guard.watch(step + 1, batch, loss, skipped)
        return bool(skipped)

    def state(self) -> dict[str, torch.Tensor]:
        """All that a step may change, whole on the first worker."""
        from pipelines.train.deepspeed.sharding import updates_made, whole_moments, whole_weights

        weights, moments = whole_weights(self.model), whole_moments(self.engine, self.model)
        named = {f"weight/{k}": v for k, v in weights.items()}
        named |= {f"moment/{k}": v for k, v in moments.items()}
        return named | {"updates": torch.tensor(updates_made(self.engine))}

    def save(self, folder: Path, step: int) -> Path:
        from pipelines.train.checkpoints.state import save_checkpoint

        save_checkpoint(folder, self.engine, self.model, step)
        return folder


def skip_a_bad_step(rank: int, folder: Path, stage: str) -> None:
    """Steps 0, 1 (bad) and 2; and for comparison 0 and 2, where 1 never was."""
    run = Run(make_config(folder, *STAGES[stage]), rank)
    run.step(0)
    keep(rank, folder / "before", run.state())
    skipped = run.step(1, bad=True)
    keep(rank, folder / "after", run.state())
    assert skipped
    assert not run.step(2)
    keep(rank, folder / "end", run.state())
    run.guard.settle()
    keep_json(rank, folder / "metrics", run.guard.metrics())
    run.engine.destroy()
    other = Run(make_config(folder / "other", *STAGES[stage]), rank)
    other.step(0)
    other.step(2)
    keep(rank, folder / "end_without", other.state())
    other.engine.destroy()


def meet_what_is_not_finite(rank: int, folder: Path) -> None:
    """What every worker is told in each case."""
    run = Run(make_config(folder / "stop", "deepspeed.zero_stage=1", "guard.policy=stop"), rank)
    run.step(0, bad=True)
    said = {"stop": error_of(run.step, 1)}
    run.engine.destroy()

    run = Run(make_config(folder / "row", "deepspeed.zero_stage=0", "guard.max_skips=2"), rank)
    bad_steps = [True, False, True, True, True]
    said["before the limit"] = error_of(
        lambda: [run.step(n, bad=b) for n, b in enumerate(bad_steps)]
    )
    said["in a row"] = error_of(run.guard.settle)
    run.engine.destroy()

    run = Run(
        make_config(folder / "gradients", "deepspeed.zero_stage=1", "guard.policy=stop"), rank
    )
    fine = run.model.fine_projection
    fine.register_hook(lambda gradient: gradient * torch.inf)
    run.step(0)
    said["gradients"] = error_of(run.guard.settle)
    run.engine.destroy()

    run = Run(make_config(folder / "weights", "deepspeed.zero_stage=3", "guard.policy=stop"), rank)
    run.step(0)
    coarse = run.model.coarse_projection
    with deepspeed.zero.GatheredParameters([coarse], modifier_rank=0), torch.no_grad():
        coarse[3, 2] = torch.nan
    run.step(1)
    said["weights"] = error_of(run.guard.settle)
    run.engine.destroy()
    everyone: list = [None] * WORKERS
    dist.all_gather_object(everyone, said)
    keep_json(rank, folder / "said", everyone)


def train_in_float16(rank: int, folder: Path) -> None:
    """Steps until the scale has come down and after, with a checkpoint on the way down."""
    run = Run(make_config(folder, *FLOAT16), rank)
    assert all(p.dtype == torch.float32 for p in run.model.parameters())
    skipped, scales = [], []
    for step in range(12):
        skipped.append(run.step(step))
        run.guard.settle()
        scales.append(run.guard.metrics()["train/loss_scale"])
        if step == 2:
            checkpoint = run.save(folder, 3)
    keep(rank, folder / "end", run.state())
    keep_json(rank, folder / "log", [skipped, scales, run.guard.metrics()])
    run.engine.destroy()
    resumed = Run(make_config(folder, *FLOAT16), rank, checkpoint)
    again = [resumed.step(step) for step in range(3, 12)]
    resumed.guard.settle()
    keep(rank, folder / "end_resumed", resumed.state())
    keep_json(rank, folder / "log_resumed", [again, resumed.guard.metrics()])
    resumed.engine.destroy()


def cool_down_a_trunk(rank: int, folder: Path) -> None:
    trunk = Run(make_config(folder, "optimizer.schedule=constant"), rank)
    for step in range(2):
        trunk.step(step)
    checkpoint = trunk.save(folder, 2)
    trunk.engine.destroy()
    for name, first, start in (("branch", 2, checkpoint), ("all_along", 0, None)):
        run = Run(make_config(folder, *COOLDOWN), rank, start)
        for step in range(first, TOTAL_STEPS):
            run.step(step)
        keep(rank, folder / name, run.state())
        run.engine.destroy()


def keep(rank: int, path: Path, tensors: dict[str, torch.Tensor]) -> None:
    if rank == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path)


def keep_json(rank: int, path: Path, value: object) -> None:
    if rank == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))


def error_of(action, *args) -> str:
    try:
        action(*args)
    except CAFTError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def run_all(rank: int, folder: Path) -> None:
    for stage in STAGES:
        skip_a_bad_step(rank, folder / stage, stage)
    meet_what_is_not_finite(rank, folder / "errors")
    train_in_float16(rank, folder / "float16")
    cool_down_a_trunk(rank, folder / "cooldown")


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """What one group of two workers made of all cases."""
    folder = tmp_path_factory.mktemp("guard")
    run_in_processes(run_all, WORKERS, folder)
    return folder


def assert_same(one: Path, other: Path) -> None:
    expected, found = load_file(other), load_file(one)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize("stage", STAGES)
def test_a_skipped_step_changes_nothing_and_training_goes_on_as_if_it_had_not_been(results, stage):
    folder = results / stage
    assert_same(folder / "after", folder / "before")
    assert_same(folder / "end", folder / "end_without")
    assert load_file(folder / "end")["updates"] == 2
    assert json.loads((folder / "metrics").read_text()) == {"train/skipped_steps": 1.0}


@pytest.mark.parametrize("stage", STAGES)
def test_the_bad_image_and_the_bad_caption_are_named_by_step_and_key(results, stage):
    """Though batch normalisation, packed rows and the loss spread them over the whole batch."""
    lines = (results / stage / "skipped.jsonl").read_text().splitlines()
    (skip,) = [json.loads(line) for line in lines]
    assert (skip["step"], skip["reason"]) == (2, "loss")
    assert (skip["images"], skip["captions"]) == (["key14"], ["key13"])
    assert skip["weight"] is None


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (
            "stop",
            r"DataError: step 1: the loss is not finite, because of the images of key6 and the "
            r"captions of key5; take these rows out of the dataset; or set guard\.policy=skip .*"
            r"skipped\.jsonl",
        ),
        ("before the limit", "nothing"),
        ("in a row", r"DataError: step 5: .* key38 .*guard\.max_skips 2 steps before it"),
        (
            "gradients",
            "NumericsError: step 1: gradients are not finite, and not because of single images or "
            r"captions; lower optimizer\.lr",
        ),
        (
            "weights",
            "NumericsError: step 2: the loss is not finite, because weights are not: "
            "coarse_projection; go back",
        ),
    ],
)
def test_every_worker_stops_alike_and_says_what_is_at_fault(results, case, message):
    first, second = json.loads((results / "errors" / "said").read_text())
    assert first[case] == second[case]
    assert re.match(message, first[case]), first[case]


def test_float16_overflow_lowers_the_scale_and_is_no_fault_of_the_data(results):
    skipped, scales, metrics = json.loads((results / "float16" / "log").read_text())
    overflows = sum(skipped)
    assert skipped[:3] == [True] * 3
    assert 0 < overflows < len(skipped)
    for before, after, halved in zip([2.0**12, *scales], scales, skipped, strict=False):
        assert after == (before / 2 if halved else before)
    assert metrics["train/skipped_steps"] == 0
    assert metrics["train/overflowed_steps"] == overflows
    assert load_file(results / "float16" / "end")["updates"] == len(skipped) - overflows


def test_float16_goes_on_from_a_checkpoint_as_if_undisturbed(results):
    folder = results / "float16"
    assert_same(folder / "end_resumed", folder / "end")
    skipped, _, metrics = json.loads((folder / "log").read_text())
    assert json.loads((folder / "log_resumed").read_text()) == [skipped[3:], metrics]


def test_a_trunk_cooled_down_from_a_checkpoint_is_a_run_with_that_schedule_all_along(results):
    assert_same(results / "cooldown" / "branch", results / "cooldown" / "all_along")
