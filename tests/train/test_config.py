"""The train stage's configuration: what does not go together is said before anything starts."""

from pathlib import Path

import pytest

from caft.config import load_config, load_model_config
from caft.errors import ConfigError
from pipelines.train.config import TrainConfig

REPOSITORY = Path(__file__).resolve().parents[2]


def config_of(*overrides: str) -> TrainConfig:
    base = ["dataset=none", "output=none", "global_batch=96", "block_size=32", "ingest.lanes=4"]
    return load_config(TrainConfig, None, [*base, *overrides])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["batch_norm_images=36"],
            "global_batch 96 is not a multiple of batch_norm_images 36",
        ),
        (
            ["scaling.micro_batch=16", "scaling.num_workers=1"],
            r"micro_batch 16 must divide the 96 images of a worker .* and be a multiple of "
            r"batch_norm_images 32; possible: one of 32, 96",
        ),
        (
            ["scaling.micro_batch=20", "scaling.num_workers=2", "batch_norm_images=8"],
            "possible: one of 8, 16, 24, 48",
        ),
        (
            ["scaling.micro_batch=8", "scaling.num_workers=4"],
            "possible: none unless batch_norm_images divides 24",
        ),
        (
            ["deepspeed.offload_optimizer=true", "deepspeed.zero_stage=0"],
            r"offload_optimizer needs deepspeed\.zero_stage 1, 2 or 3",
        ),
        (
            ["scaling.compile=true", "deepspeed.zero_stage=3"],
            r"scaling\.compile does not go with deepspeed\.zero_stage 3",
        ),
        (
            ["scaling.compile=true", "scaling.num_workers=4"],
            r"scaling\.compile needs whole blocks of batch_norm_images 32 in the 24 images of a "
            r"worker .*; set that to a divisor of 24",
        ),
        (["deepspeed.zero_stage=4"], r"deepspeed\.zero_stage"),
        (
            ["deepspeed.offload_parameters=true", "deepspeed.zero_stage=2"],
            r"offload_parameters needs deepspeed\.zero_stage 3, not 2",
        ),
        (
            ["deepspeed.precision=float16", "deepspeed.zero_stage=0"],
            r"precision float16 needs deepspeed\.zero_stage 1, 2 or 3",
        ),
        (["optimizer.cooldown_steps=5"], "cooldown_steps 5 needs schedule constant_cooldown"),
        (["optimizer.min_lr=1.0"], r"min_lr 1 is above lr 0\.0005"),
        (["guard.policy=hope"], r"guard\.policy"),
        (["profile.start_step=0"], r"profile\.start_step"),
    ],
)
def test_what_does_not_go_together_is_named_with_what_would(overrides, message):
    with pytest.raises(ConfigError, match=message):
        config_of(*overrides)


@pytest.mark.parametrize(
    ("global_batch", "block"), [(2048, 32), (96, 32), (100, 25), (24, 24), (8, 8)]
)
def test_the_block_of_batch_norm_follows_from_the_global_batch_alone(global_batch, block):
    overrides = [f"global_batch={global_batch}", f"block_size={global_batch}"]
    for workers in (1, 2, 4):
        config = config_of(*overrides, f"scaling.num_workers={workers}")
        assert config.batch_norm_block == block


@pytest.mark.parametrize("recipe", sorted((REPOSITORY / "configs/train").glob("caft_b_*.yaml")))
def test_published_recipes_normalise_over_the_256_images_of_a_loss_block(recipe):
    """Also in a smaller batch, on many workers and in micro-batches, or a line says what to set."""

    def config(*overrides):
        return load_config(TrainConfig, recipe, overrides)

    assert config().batch_norm_block == config().block_size == 256
    for fits in (
        ["scaling.compile=true"],
        ["scaling.num_workers=1", "scaling.micro_batch=256"],
        ["scaling.num_workers=64"],  # blocks span workers
    ):
        assert config(*fits).batch_norm_block == 256
    assert config("global_batch=64").batch_norm_block == 64
    for misfit in (["scaling.micro_batch=32"], ["scaling.num_workers=16", "scaling.compile=true"]):
        with pytest.raises(ConfigError, match="batch_norm_images 256"):
            config(*misfit)
        assert config(*misfit, "batch_norm_images=32").batch_norm_block == 32


@pytest.mark.parametrize(
    ("size", "lr", "decay", "eps", "clip", "pairs", "steps"),
    [
        ("3m", 5e-4, 0.5, 1e-8, None, 2_823_423, 44_096),
        ("12m", 5e-4, 0.5, 1e-8, 1.0, 10_012_845, 156_448),
        ("15m", 1.67e-4, 0.5, 1e-6, 1.0, 14_066_050, 219_776),
        ("30m", 5e-4, 0.2, 1e-6, None, 26_902_318, 420_320),
    ],
)
def test_recipes_of_caft_b_are_the_published_ones(size, lr, decay, eps, clip, pairs, steps):
    """And the page about them has these numbers."""
    config = load_config(TrainConfig, REPOSITORY / f"configs/train/caft_b_{size}.yaml")
    optimizer = config.optimizer
    assert (optimizer.lr, optimizer.weight_decay, optimizer.eps) == (lr, decay, eps)
    assert (optimizer.grad_clip, optimizer.betas, optimizer.warmup_steps) == (
        clip,
        (0.9, 0.98),
        2000,
    )
    assert (optimizer.schedule, optimizer.min_lr) == ("cosine", 0)
    assert (config.epochs, config.global_batch, config.block_size, config.seed) == (
        32,
        2048,
        256,
        0,
    )
    assert (config.ingest.extra_parts, config.ingest.flip_probability) == (4, 0)
    assert (config.average, config.subset, config.start_from) == (None, None, None)
    model = load_model_config(config.model)
    assert model.init_logit_bias == -10
    assert set(dict(model.losses.weights).values()) == {1}
    assert (model.losses.parts, model.losses.whole, model.text.chunks) == (True, "sigmoid", 4)
    assert round(config.epochs * (pairs // config.global_batch)) == steps
    page = (REPOSITORY / "docs/published.md").read_text(encoding="utf-8")
    assert f"{pairs:,}" in page
    assert f"{steps:,}" in page


def test_micro_batches_that_fit_are_taken():
    config = config_of("scaling.micro_batch=24", "scaling.num_workers=2", "batch_norm_images=8")
    assert config.scaling.micro_batch == 24
