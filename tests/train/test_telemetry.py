"""What a run tells of itself: metrics in MLflow, checked against plan, clock and model."""

from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch
from tests_support import random_images, tiny_config, tiny_controls

import caft
from caft.config import load_config
from caft.cost import Workload, flops
from caft.losses import CAFTLoss, draw_negatives
from caft.superpixels import superpixel_labels
from pipelines.data.dataset import open_dataset
from pipelines.progress import Progress
from pipelines.train.config import TrainConfig
from pipelines.train.distributed import TrainingModel
from pipelines.train.ingest import Batch, index_row_groups
from pipelines.train.inputs import Sender, sent_ahead
from pipelines.train.loader import Loader
from pipelines.train.plan import EpochPlan
from pipelines.train.telemetry import METRICS, TERA, Telemetry, published_rate

STEPS, BATCH, EVERY = 12, 8, 2
LOGGED = list(range(EVERY, STEPS + 1, EVERY))
# Checkpoints of steps 4 and 8 are logged with the interval after, what writing one took with the
# next: that of step 12 comes after the last.
SAVED = {"train/checkpoint_blocked_s": [6, 10], "train/checkpoint_write_s": [10]}
LOSSES = {"part_text_conditioned", "part_multi_positive", "whole", "total"}
TRAIN = {
    "step_s", "images_per_s", "worker_images_per_s_min", "worker_images_per_s_median",
    "worker_images_per_s_max", "tokens_per_s", "tokens_per_step", "input_wait_fraction",
    "input_wait_fraction_max", "worker_skew", "host_memory_gib", "mfu", "gradient_norm",
    "gradient_norm_max", "lr", "epoch", "samples_seen", "part_scale", "whole_scale", "part_bias",
    "whole_bias", "skipped_steps",
}  # fmt: skip


def test_every_interval_has_every_metric_once(watched_run):
    """Also after the run was taken up again at step 4 and had passed steps 5 to 12 twice."""
    names = {f"loss/{name}" for name in LOSSES} | {f"train/{name}" for name in TRAIN}
    logged = set(watched_run.first.data.metrics)
    assert {name for name in logged if name.startswith(("loss/", "train/"))} == names | SAVED.keys()
    for name in names:
        assert [step for step, _ in watched_run.history(name)] == LOGGED, name
    for name, steps in SAVED.items():
        assert [step for step, _ in watched_run.history(name)] == steps, name
    assert "system/cpu_utilization_percentage" in logged


def test_rates_fit_the_clock_and_the_plan(watched_run):
    values = {name: dict(watched_run.history(f"train/{name}")) for name in TRAIN}
    for step in LOGGED:
        now = {name: values[name][step] for name in TRAIN}
        assert now["images_per_s"] * now["step_s"] == pytest.approx(BATCH)
        assert now["tokens_per_s"] * now["step_s"] == pytest.approx(now["tokens_per_step"])
        of_workers = [now[f"worker_images_per_s_{which}"] for which in ("min", "median", "max")]
        assert of_workers == sorted(of_workers)
        assert 2 * of_workers[0] <= now["images_per_s"] * 1.001 <= 2 * of_workers[2] * 1.002
        assert 0 < now["mfu"] < 1
        assert 0 <= now["input_wait_fraction"] <= now["input_wait_fraction_max"] < 1
        assert 0 <= now["worker_skew"] < 1
        assert 0 < now["gradient_norm"] <= now["gradient_norm_max"]
        assert 0.1 < now["host_memory_gib"] < 16
        assert now["samples_seen"] == step * BATCH
    assert sum(EVERY * s for s in values["step_s"].values()) < watched_run.first_seconds
    plan = plan_of(watched_run.config)
    assert values["epoch"][STEPS] == pytest.approx(STEPS / plan.steps_per_epoch)
    expected = tokens_by_step(watched_run.config, plan)
    for step in LOGGED:
        assert values["tokens_per_step"][step] == np.mean(expected[step - EVERY : step])


def test_scales_biases_and_losses_are_those_of_the_model(watched_run):
    folder = Path(watched_run.config.output)
    model = caft.load_model(folder / "final")
    for name, value in model.scales().items():
        assert dict(watched_run.history(f"train/{name}_scale"))[STEPS] == pytest.approx(value)
    for name, value in model.biases().items():
        assert dict(watched_run.history(f"train/{name}_bias"))[STEPS] == pytest.approx(value)
    terms = [dict(watched_run.history(f"loss/{name}")) for name in LOSSES - {"total"}]
    for step, total in watched_run.history("loss/total"):
        assert sum(term[step] for term in terms) == pytest.approx(total)


def test_tags_say_what_the_run_runs_on(watched_run):
    tags = watched_run.first.data.tags
    assert tags["world_size"] == "2"
    assert tags["torch_version"] == torch.__version__
    assert {"ray_version", "deepspeed_version", "git_revision", "dataset_fingerprint"} <= set(tags)
    assert tags["mfu_peak"].startswith("measured, 1 CPU threads (")


@pytest.mark.parametrize("name", ["caft", "clip_softmax", "flair"])
def test_one_worker_alone_measures_its_own_steps(name):
    """Without a process group, against losses and FLOP computed here; steps that were skipped
    because they are not finite have no part in means."""
    model = caft.create_model(tiny_controls()[name])
    config = load_config(
        TrainConfig, None, ["dataset=none", "output=none", "global_batch=4", "ingest.lanes=4"]
    )
    trained = TrainingModel(model, 4)
    telemetry = Telemetry(config, trained, steps_per_epoch=10, device=torch.device("cpu"))
    losses = []
    cpu, on_host = torch.device("cpu"), iter([make_batch(model, 0), make_batch(model, 1)])
    sent = sent_ahead(on_host, Sender(model, config, cpu), cpu)
    for n, batch in enumerate(telemetry.watch(sent)):
        negatives = draw_negatives(4, batch.host.tokens.shape[1], n, 4)
        loss = trained(batch.images, batch.superpixels, batch.texts[0], negatives)
        telemetry.add(loss, torch.tensor(3.0))
        nan = {name: term * torch.nan for name, term in loss.terms.items()}
        bad = CAFTLoss(nan, loss.total * torch.nan)
        telemetry.add(bad, torch.tensor(torch.inf), skipped=torch.tensor(True))
        losses.append(loss)
    metrics = telemetry.take(step=2, lr=0.1)
    documented = [name.replace("...", "*") for name in METRICS]
    assert all(any(fnmatch(name, one) for one in documented) for name in metrics)
    assert metrics["loss/total"] == pytest.approx(np.mean([one.total.item() for one in losses]))
    assert {k for k in metrics if k.endswith("_scale")} == {
        f"train/{scale}_scale" for scale in model.scales()
    }
    assert ("train/whole_bias" in metrics) == (name == "caft")
    assert metrics["train/gradient_norm"] == metrics["train/gradient_norm_max"] == 3.0
    assert metrics["train/worker_skew"] == 0
    chunks = model.config.text.chunks
    flop = flops(model.config, Workload(5.5, chunks, 4, config.block_size)).training
    rate = flop * metrics["train/images_per_s"] / telemetry.peak.flop_per_s
    assert metrics["train/mfu"] == pytest.approx(rate)


def test_peaks_are_found_by_the_names_that_cuda_gives():
    for name, tera in {
        "NVIDIA H100 80GB HBM3": 989, "NVIDIA H100 PCIe": 756, "NVIDIA H100 NVL": 835,
        "NVIDIA H200": 989, "NVIDIA GH200 480GB": 989, "NVIDIA A100-SXM4-80GB": 312,
        "NVIDIA A100 80GB PCIe": 312, "NVIDIA L40S": 362, "NVIDIA L4": 121, "NVIDIA A10": 125,
    }.items():  # fmt: skip
        assert published_rate(name, "bfloat16") == tera * TERA, name
    assert published_rate("NVIDIA A100-SXM4-80GB", "float32") == 19.5 * TERA
    assert published_rate("NVIDIA GeForce RTX 9090", "bfloat16") is None
    assert published_rate("NVIDIA A10G", "bfloat16") is None


def test_progress_shows_numbers_and_texts(capsys):
    progress = Progress("train", 10, "steps", every_s=0.0)
    progress.update(4, **{"loss": 4.8312, "images/s": 1254.3, "waiting": "2%", "memory": "3.1 GiB"})
    line = capsys.readouterr().out
    assert line.startswith("train 4/10 steps 40% ")
    assert line.endswith("loss 4.831 images/s 1,254 waiting 2% memory 3.1 GiB\n")


def make_batch(model, n: int) -> Batch:
    """Four captions whose texts have 5 + n tokens each."""
    images = random_images(4, seed=n)
    labels = superpixel_labels(images, tiny_config().image.superpixels)
    tokens = torch.randint(1, 1000, (4, model.config.text.chunks, 8))
    tokens[:, :, 4 + n] = 49407
    tokens[:, :, 5 + n :] = 0
    return Batch(images, labels, tokens)


def plan_of(config: TrainConfig) -> EpochPlan:
    groups = index_row_groups(open_dataset(config.dataset), config.split)
    return EpochPlan(groups, BATCH, config.ingest.lanes, config.ingest.window_steps, config.seed)


def tokens_by_step(config: TrainConfig, plan: EpochPlan) -> list[int]:
    """Real tokens of each step, from the loader's own arrays."""
    loader = Loader(config.dataset, config.split, config.model, config.ingest)
    counts = [0] * plan.steps_per_epoch
    for lane in range(plan.lanes):
        for window in plan.windows(0, lane):
            tokens = loader(asdict(window))["tokens"]  # (n, K, context)
            lengths = (tokens.argmax(axis=-1) + 1).sum(axis=1)
            for offset in range(window.steps):
                rows = slice(
                    offset * plan.rows_per_lane_step, (offset + 1) * plan.rows_per_lane_step
                )
                counts[window.first_step + offset] += int(lengths[rows].sum())
    return counts
