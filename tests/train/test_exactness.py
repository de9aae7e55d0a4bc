"""The same global batch gives the same loss, gradients and statistics however it is computed: on
1, 2 or 4 workers, in micro-batches, at every ZeRO stage, with recomputed activations."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests_support import tiny_config, tiny_controls
from training_support import PARTS, batch_of, run_in_processes, trained_config

import caft
from caft.checkpoint import WEIGHTS, load_weights
from caft.config import load_config
from caft.dropout import Draws
from caft.losses import draw_negatives
from pipelines.train.config import TrainConfig
from pipelines.train.distributed import TrainingModel
from pipelines.train.ingest import Batch

pytestmark = pytest.mark.timeout(900)  # all processes run in the first test's set-up

GLOBAL_BATCH, STEPS, SEED, SAVED_AT = 24, 3, 3, 1
# 24 images on 2 or 4 workers: blocks of 8, of the loss and of some norms, lie across workers.
GRAD_CLIP = 20.0
LOSS_BLOCK, NORM_BLOCK, WIDE_NORM_BLOCK = 8, 2, 8
MICRO_BATCH = {1: 12, 2: 6, 4: 2}
RELATIVE = 1e-5
NOISE = 1e-2  # a gradient below this share of the whole one is measured against the whole one


@dataclass(frozen=True)
class Case:
    """One way to compute the same steps."""

    workers: int
    zero: int = 0
    micro: bool = False
    recompute: bool = False
    offload: bool = False
    norm_block: int = NORM_BLOCK
    model: str = "caft"
    resumed_from: "Case | None" = None
    run: int = 1

    @property
    def saves(self) -> bool:
        """Whether it leaves a checkpoint after step SAVED_AT, for others to go on from."""
        return self.workers == 2 and self.run == 1 and self.norm_block == NORM_BLOCK

    @property
    def name(self) -> str:
        fields = [f"{key}-{value}" for key, value in vars(self).items() if key != "resumed_from"]
        before = f"_after_{self.resumed_from.name}" if self.resumed_from else ""
        return "_".join(fields) + before

    @property
    def everyday(self) -> bool:
        """Whether it is tried in the tests of every day: on one node's worth of processes."""
        return self.workers <= 2 and not self.offload

    @property
    def reference(self) -> "Case":
        return Case(1, norm_block=self.norm_block, model=self.model)


def all_cases() -> list[Case]:
    cases = []
    for workers in (2, 4, 1):  # in this order: those of 2 leave checkpoints
        cases += [
            Case(workers, zero, micro, recompute=(zero % 2 == 1) != micro)
            for zero in range(4)
            for micro in (False, True)
        ]
        cases += [
            Case(workers, 0, recompute=True),
            Case(workers, 0, micro=True),
            Case(workers, 1, norm_block=WIDE_NORM_BLOCK),
        ]
    cases += [Case(1, norm_block=WIDE_NORM_BLOCK)]
    cases += [Case(2, zero, offload=True) for zero in (1, 2, 3)]
    cases += [Case(2, 1, recompute=True, run=2)]
    for model in ("clip_softmax", "flair"):
        cases += [Case(1, model=model), Case(2, 1, micro=True, model=model)]
    crossings = [(4, 3, 0), (4, 0, 3), (4, 2, 1), (1, 1, 2), (1, 3, 3)]
    for workers, zero, zero_before in crossings:
        before = Case(2, zero_before, recompute=zero_before % 2 == 1)
        cases.append(Case(workers, zero, resumed_from=before))
    return list(dict.fromkeys(cases))


CASES = all_cases()


def make_config(case: Case) -> TrainConfig:
    overrides = [
        "dataset=none", "output=none", f"global_batch={GLOBAL_BATCH}", f"block_size={LOSS_BLOCK}",
        f"batch_norm_images={case.norm_block}", f"seed={SEED}", "ingest.lanes=4",
        f"scaling.num_workers={case.workers}", f"scaling.recompute_activations={case.recompute}",
        f"scaling.micro_batch={MICRO_BATCH[case.workers] if case.micro else 'null'}",
        f"deepspeed.zero_stage={case.zero}", f"deepspeed.offload_optimizer={case.offload}",
        # Without an eps, Adam makes steps as large as any out of gradients that are rounding error.
        "optimizer.eps=1.0e-3", f"optimizer.grad_clip={GRAD_CLIP}",
    ]  # fmt: skip
    return load_config(TrainConfig, None, overrides)


def model_config(case: Case):
    return trained_config(tiny_config() if case.model == "caft" else tiny_controls()[case.model])


def share_of_batch(step: int, rank: int, workers: int) -> Batch:
    return batch_of(step, GLOBAL_BATCH, rank, workers)


def run_worker(rank: int, cases: list[Case], folder: Path) -> None:
    """One process of a group that computes `cases`, all of as many workers."""
    for case in cases:
        found = compute(case, rank, folder)
        if rank == 0:
            save_file(found, folder / f"{case.name}.safetensors")


def compute(case: Case, rank: int, folder: Path) -> dict[str, torch.Tensor]:
    """Everything that must not depend on how `case` computes it."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad

    from pipelines.train.checkpoints.state import restore_state, save_checkpoint
    from pipelines.train.deepspeed.engine import start_engine
    from pipelines.train.deepspeed.sharding import whole_moments, whole_weights
    from pipelines.train.step import apply_gradients, compute_gradients

    config = make_config(case)
    torch.manual_seed(0)
    model = caft.create_model(model_config(case))
    before = None
    if case.resumed_from:
        before = folder / case.resumed_from.name
        load_weights(model, before / WEIGHTS)
    model.recompute_activations(config.scaling.recompute_activations)
    trained = TrainingModel(model, config.block_size, batch_norm_images=config.batch_norm_block)
    engine = start_engine(trained, config)
    found = {}
    for step in range(restore_state(before, engine, model) if before else 0, STEPS):
        batch = share_of_batch(step, rank, case.workers)
        loss = compute_gradients(engine, trained, batch, step, config)
        terms = torch.stack([*loss.terms.values(), loss.total]).detach()
        dist.all_reduce(terms)
        found[f"{step}/terms"] = terms.flatten()
        for name, parameter in model.named_parameters():
            found[f"{step}/gradient/{name}"] = safe_get_full_grad(parameter).clone()
        apply_gradients(engine, trained, lr=1e-3)
        found[f"{step}/norm"] = torch.as_tensor(engine.get_global_grad_norm()).float()
        if case.saves and step + 1 == SAVED_AT:
            save_checkpoint(folder / case.name, engine, model, SAVED_AT)
    found |= {f"state/{n}": w for n, w in whole_weights(model).items()}
    found |= {f"moment/{n}": m for n, m in whole_moments(engine, model).items()}
    if case.saves:  # one step so large that scales would leave their range
        compute_gradients(engine, trained, batch, STEPS, config)
        apply_gradients(engine, trained, lr=100.0)
        for name, (scale, _) in model.log_scales().items():
            optimised = safe_get_full_fp32_param(scale) if case.zero else scale
            found[f"scale/{name}"] = optimised.detach().clone()
    engine.destroy()
    return found


@pytest.fixture(scope="module")
def computed(request, tmp_path_factory) -> Path:
    """The cases that are asked for, one group of processes for each number of workers."""
    folder = tmp_path_factory.mktemp("exactness")
    tests = [item for item in request.session.items if item.path == request.path]
    slow_ones = any(item.get_closest_marker("slow") for item in tests)
    for workers in (2, 4, 1):
        cases = [c for c in CASES if c.workers == workers and (slow_ones or c.everyday)]
        if cases:
            run_in_processes(run_worker, workers, cases, folder)
    return folder


def found_by(case: Case, folder: Path) -> dict[str, torch.Tensor]:
    found = load_file(folder / f"{case.name}.safetensors")
    return {key: value for key, value in found.items() if not key.startswith("scale/")}


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=c.name, marks=() if c.everyday else pytest.mark.slow) for c in CASES],
)
def test_loss_gradients_and_statistics_are_those_of_one_worker(case, computed):
    expected, ours = found_by(case.reference, computed), found_by(case, computed)
    if case.resumed_from:
        expected = {key: v for key, v in expected.items() if key[0] != "0"}
    assert ours.keys() == expected.keys()
    for step in range(SAVED_AT if case.resumed_from else 0, STEPS):
        gradients = [v for key, v in expected.items() if key.startswith(f"{step}/gradient/")]
        whole = torch.stack([gradient.norm() for gradient in gradients]).norm()
        for key in expected:
            if key.startswith(f"{step}/gradient/"):
                error = (ours[key] - expected[key]).norm()
                assert error <= RELATIVE * max(expected[key].norm(), NOISE * whole), key
        # The norm is that before clipping, which all steps need: it is taken right, or moments are
        # not those of one worker.
        torch.testing.assert_close(ours[f"{step}/norm"], whole, rtol=RELATIVE, atol=0)
        assert whole > GRAD_CLIP
        key = f"{step}/terms"
        torch.testing.assert_close(ours[key], expected[key], rtol=RELATIVE, atol=0, msg=key)
    for key, value in expected.items():
        if key.startswith("state/"):
            torch.testing.assert_close(ours[key], value, rtol=RELATIVE, atol=1e-6, msg=key)
        elif key.startswith("moment/"):
            scale = value.abs().max().item()
            torch.testing.assert_close(
                ours[key], value, rtol=1e-4, atol=1e-4 * scale + 1e-9, msg=key
            )


def test_the_same_run_twice_is_the_same_to_the_last_bit(computed):
    first, second = (Case(2, 1, recompute=True, run=run) for run in (1, 2))
    first, second = found_by(first, computed), found_by(second, computed)
    for key, value in first.items():
        assert torch.equal(second[key], value), key


def test_running_statistics_moved_once_a_step(computed):
    state = found_by(Case(2, 2, micro=True, recompute=True), computed)
    moved = [key for key in state if key.endswith("num_batches_tracked")]
    assert moved
    assert all(state[key] == STEPS for key in moved)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_scales_stay_in_range_where_the_optimiser_keeps_them(zero, computed):
    """A copy that drifts out of range would hold the scale at its bound long after the gradient
    has turned."""
    case = Case(2, zero, recompute=zero % 2 == 1)
    found = load_file(computed / f"{case.name}.safetensors")
    ranges = caft.create_model(model_config(case)).log_scales()
    for name, (_, most) in ranges.items():
        assert 0 <= found[f"scale/{name}"].item() <= most + 1e-6
    assert any(found[f"scale/{name}"] in (0, most) for name, (_, most) in ranges.items())


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return caft.create_model(model_config(Case(1)))


@settings(max_examples=12)
@given(st.data())
def test_any_micro_batches_of_whole_blocks_give_the_same(model, data):
    """Batches of up to 24, cut in every way that the configuration would allow."""
    divisors = lambda n: [d for d in range(1, n + 1) if n % d == 0]  # noqa: E731
    count = data.draw(st.sampled_from([6, 8, 12, 24]))
    norm_block = data.draw(st.sampled_from(divisors(count)))
    micro = norm_block * data.draw(st.sampled_from(divisors(count // norm_block)))
    loss_block = data.draw(st.sampled_from(divisors(count)[1:]))
    batch = share_of_batch(data.draw(st.integers(0, 5)), 0, 1)
    images, superpixels, tokens = (
        t[:count] for t in (batch.images, batch.superpixels, batch.tokens)
    )
    trained = TrainingModel(model, loss_block, batch_norm_images=norm_block)
    negatives = draw_negatives(count, PARTS, 0, loss_block)
    draws = Draws(torch.tensor(1), torch.arange(count))
    results = []
    for size in (count, micro):
        texts = [model.pack_texts(share) for share in tokens.split(size)]
        model.zero_grad()
        loss = trained(images, superpixels, texts, negatives, draws)
        loss.total.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        results.append(
            (
                torch.stack([*loss.terms.values(), loss.total]).detach(),
                gradient,
                trained.batch_statistics,
            )
        )
    for (whole, cut), name in zip(
        zip(*results, strict=True), ("loss", "gradient", "statistics"), strict=True
    ):
        assert (whole - cut).norm() <= RELATIVE * whole.norm(), name
