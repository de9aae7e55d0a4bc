"""DeepSpeed's own JSON: what goes against our configuration is refused, the rest is passed on."""

import json
from pathlib import Path

import deepspeed
import pytest

from caft.config import load_config
from caft.errors import ConfigError, StorageError
from pipelines.train.config import TrainConfig
from pipelines.train.deepspeed.config import (
    KNOWN,
    UNUSABLE,
    loss_scale_section,
    resolve_deepspeed,
)
from pipelines.train.deepspeed.engine import check_settings, engine_settings

# As trainers of other projects write it.
USUAL = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": 16,
    "gradient_accumulation_steps": 1,
    "gradient_clipping": 1.0,
    "bf16": {"enabled": True},
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": 5e-4, "betas": [0.9, 0.98], "eps": 1e-8, "weight_decay": "auto"},
    },
    "scheduler": {"type": "auto", "params": {"warmup_num_steps": "auto"}},
    "zero_optimization": {
        "stage": 2,
        "overlap_comm": True,
        "reduce_bucket_size": 5e7,
        "allgather_bucket_size": "auto",
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
    },
    "comms_logger": {"enabled": True, "verbose": False},
    "wall_clock_breakdown": True,
}
OURS = (
    "dataset=none", "output=none", "global_batch=64", "block_size=32", "scaling.num_workers=4",
    "optimizer.grad_clip=1.0", "deepspeed.zero_stage=2", "deepspeed.precision=bfloat16",
    "deepspeed.offload_optimizer=true",
)  # fmt: skip


def config_of(own, *overrides: str) -> TrainConfig:
    return load_config(TrainConfig, None, [*OURS, *overrides, f"deepspeed.file={json.dumps(own)}"])


def test_a_usual_file_is_taken_and_what_is_not_ours_reaches_deepspeed(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(USUAL))
    config = resolve_deepspeed(load_config(TrainConfig, None, [*OURS, f"deepspeed.file={path}"]))
    assert config == resolve_deepspeed(config_of(USUAL))
    assert config == resolve_deepspeed(config)
    check_settings(config)
    settings = engine_settings(config, 4, parameters=10**6)
    plain = engine_settings(config_of({}), 4, parameters=10**6)
    zero = settings["zero_optimization"]
    assert zero["overlap_comm"]
    assert zero["reduce_bucket_size"] == 5e7
    assert zero["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert "allgather_bucket_size" not in zero
    assert settings["comms_logger"] == {"enabled": True, "verbose": False}
    assert settings["wall_clock_breakdown"]
    assert "optimizer" not in settings
    assert "bf16" not in settings  # weights stay in float32, under autocast
    assert settings["torch_autocast"] == plain["torch_autocast"]
    assert settings["train_micro_batch_size_per_gpu"] == 16


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"train_batch_size": 32}, "train_batch_size is 32, global_batch here is 64"),
        (
            {"train_micro_batch_size_per_gpu": 8},
            r"train_micro_batch_size_per_gpu is 8, global_batch / scaling\.num_workers here is 16",
        ),
        (
            {"gradient_accumulation_steps": 4},
            "gradient_accumulation_steps is 4, the only choice here is 1",
        ),
        ({"gradient_clipping": 0.5}, r"is 0\.5, optimizer\.grad_clip here is 1\.0"),
        ({"zero_optimization": {"stage": 3}}, r"stage is 3, deepspeed\.zero_stage here is 2"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}},
            r"offload_optimizer\.device is 'nvme', deepspeed\.offload_optimizer here is True",
        ),
        ({"fp16": {"enabled": True}}, r"is True, deepspeed\.precision here is 'bfloat16'"),
        ({"bf16": {"enabled": False}}, r"is False, deepspeed\.precision here is 'bfloat16'"),
        ({"optimizer": {"params": {"lr": 0.1}}}, r"lr is 0\.1, optimizer\.lr here is 0\.0005"),
        ({"optimizer": {"type": "Lamb"}}, "type is 'Lamb', the only choice here is 'AdamW'"),
        ({"scheduler": {"type": "WarmupLR"}}, r"'WarmupLR', .* optimizer\.schedule 'cosine'"),
        ({"bf16": {"immediate_grad_update": True}}, r"bf16\.immediate_grad_update has no use"),
        ({"pipeline": {"stages": 2}}, "'pipeline' has no use in this stage"),
        ({"zero_optimisation": {"stage": 2}}, "no key .*did you mean 'zero_optimization'"),
        ({"qwertz": 1}, r"DeepSpeed has no key 'qwertz'$"),
    ],
)
def test_what_goes_against_our_configuration_names_both_values(own, message):
    with pytest.raises(ConfigError, match=message):
        resolve_deepspeed(config_of(own))


def test_any_number_of_workers_leaves_their_share_open():
    own = {"train_micro_batch_size_per_gpu": 16}
    with pytest.raises(ConfigError, match="num_workers here is 'auto'"):
        resolve_deepspeed(config_of(own, "scaling.num_workers=[2, 4]"))
    resolve_deepspeed(config_of({"train_micro_batch_size_per_gpu": "auto"}))


def test_loss_scaling_is_taken_from_the_section_fp16():
    section = {"enabled": True, "loss_scale": 0, "initial_scale_power": 12, "hysteresis": "auto"}
    config = resolve_deepspeed(config_of({"fp16": section}, "deepspeed.precision=float16"))
    assert loss_scale_section(config.deepspeed) == {"initial_scale_power": 12}
    assert "fp16" not in engine_settings(config, 4, parameters=10**6)
    with pytest.raises(ConfigError, match=r"fp16\.loss_scale is 128, the only choice here is 0"):
        resolve_deepspeed(config_of({"fp16": {"loss_scale": 128}}, "deepspeed.precision=float16"))


def test_deepspeed_s_own_refusal_is_heard_before_any_worker_starts():
    config = resolve_deepspeed(config_of({"zero_optimization": {"reduce_buckets": 1}}))
    with pytest.raises(ConfigError, match=r"DeepSpeed refuses it: .*reduce_buckets"):
        check_settings(config)


def test_a_file_that_is_no_json_is_named(tmp_path):
    with pytest.raises(StorageError, match=r"nowhere\.json: no such file"):
        resolve_deepspeed(config_of(str(tmp_path / "nowhere.json")))
    broken = tmp_path / "broken.json"
    broken.write_text('{"zero_optimization": {')
    with pytest.raises(ConfigError, match=r"broken\.json: not valid JSON"):
        resolve_deepspeed(config_of(str(broken)))
    broken.write_text("[]")
    with pytest.raises(ConfigError, match="must hold a mapping, got list"):
        resolve_deepspeed(config_of(str(broken)))


def test_the_known_keys_are_those_that_deepspeed_reads():
    """Another version of DeepSpeed may read others: then the two lists want a look."""
    package = Path(deepspeed.__file__).parent
    read = "\n".join(path.read_text(encoding="utf-8") for path in package.glob("**/*.py"))
    for key in KNOWN | UNUSABLE:
        assert f'"{key}"' in read or f"'{key}'" in read, key
