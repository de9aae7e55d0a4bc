"""DeepSpeed's own JSON beside our configuration: what both decide must agree, the rest is passed.
Checked on the driver before any worker starts; engine.py merges what is left into its settings."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from caft.errors import ConfigError
from caft.overrides import leaves, merged
from pipelines import storage
from pipelines.train.config import DeepSpeedConfig, TrainConfig
from pipelines.train.deepspeed.loss_scale import DEFAULTS

AUTO = "auto"
# Of DeepSpeed 0.19: what its JSON may hold at the top, beside UNUSABLE.
KNOWN = {
    "activation_checkpointing", "aio", "bf16", "bfloat16", "comet", "communication_data_type",
    "comms_logger", "compile", "csv_monitor", "data_types", "disable_allgather",
    "disable_python_gc", "dump_state", "flops_profiler", "fp16", "gradient_accumulation_steps",
    "gradient_allreduce_op", "gradient_clipping", "gradient_predivide_factor", "log_level",
    "managed_gradient_accumulation", "memory_breakdown", "optimizer", "prescale_gradients",
    "scheduler", "seq_parallel_communication_data_type", "steps_per_print", "tensorboard",
    "timers", "torch_autocast", "train_batch_size", "train_micro_batch_size_per_gpu",
    "vocabulary_size", "wall_clock_breakdown", "wandb", "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer", "zero_optimization",
}  # fmt: skip
UNUSABLE = {
    "autotuning", "checkpoint", "curriculum_learning", "data_efficiency",
    "dataloader_drop_last", "expert_parallel", "hybrid_engine", "pipeline",
    "sequence_parallel_size", "tensor_parallel", "use_data_before_expert_parallelism",
    "weight_quantization",
}  # fmt: skip
# Sections that our configuration decides, but for the keys that follow.
OUR_SECTIONS = ("optimizer.", "scheduler.", "fp16.", "bf16.", "bfloat16.", "torch_autocast.")
IN_OUR_SECTIONS = {
    "torch_autocast.lower_precision_safe_modules",
    *(f"fp16.{name}" for name in DEFAULTS),
}
PRECISIONS = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32"}


def resolve_deepspeed(config: TrainConfig) -> TrainConfig:
    """`config` with what `deepspeed.file` adds to it in place of the file's path: all that no key
    of ours decides.

    Raises:
        ConfigError: a key that DeepSpeed does not know, that has no use here, or whose value is
            neither ours nor "auto".
        StorageError: there is no such file.
    """
    given = config.deepspeed.file
    if given is None:
        return config
    source = f"deepspeed.file {given}" if isinstance(given, str) else "deepspeed.file"
    own = _read(given, source) if isinstance(given, str) else given
    for key in own:
        if key in UNUSABLE:
            raise ConfigError(f"{source}: '{key}' has no use in this stage; leave it out")
        if key not in KNOWN:
            near = difflib.get_close_matches(key, KNOWN, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise ConfigError(f"{source}: DeepSpeed has no key '{key}'{hint}")
    rules, passed = _rules(config), dict[str, Any]()
    for key, value in leaves(own):
        theirs = _as_json(value)
        if theirs == AUTO:
            continue
        if key in rules:
            rules[key].check(key, theirs, source)
        elif key.startswith("scheduler."):
            raise ConfigError(
                f"{source}: {key} is {theirs!r}, the schedule here is optimizer.schedule "
                f"{config.optimizer.schedule!r}; write '{AUTO}' or leave it out"
            )
        elif key.startswith(OUR_SECTIONS) and key not in IN_OUR_SECTIONS:
            raise ConfigError(f"{source}: {key} has no use in this stage; leave it out")
        else:
            *parents, leaf = key.split(".")
            node = passed
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = theirs
    section = config.deepspeed.model_copy(update={"file": passed})
    return config.model_copy(update={"deepspeed": section})


def with_own_settings(settings: Mapping[str, Any], config: DeepSpeedConfig) -> dict[str, Any]:
    """Our settings of an engine and, over them, what a resolved `deepspeed.file` adds."""
    own = config.file if isinstance(config.file, dict) else {}
    return merged(settings, {key: value for key, value in own.items() if key != "fp16"})


def loss_scale_section(config: DeepSpeedConfig) -> dict[str, Any]:
    """What a resolved `deepspeed.file` says of dynamic loss scaling, in DeepSpeed's names."""
    return config.file.get("fp16", {}) if isinstance(config.file, dict) else {}


def _read(path: str, source: str) -> dict[str, Any]:
    try:
        own = json.loads(storage.read_bytes(path))
    except ValueError as error:
        raise ConfigError(f"{source}: not valid JSON: {error}") from None
    if not isinstance(own, dict):
        raise ConfigError(f"{source}: must hold a mapping, got {type(own).__name__}")
    return own


def _as_json(value: Any) -> Any:
    """YAML reads 5e7, which JSON knows as a number, as text."""
    exponent = isinstance(value, str) and re.fullmatch(r"-?\d+(\.\d+)?[eE][-+]?\d+", value)
    return float(value) if exponent else value


@dataclass(frozen=True)
class _Rule:
    """What one of DeepSpeed's keys must be: `value`, because our key `name` is `shown`."""

    value: Any
    name: str
    shown: Any

    def check(self, key: str, theirs: Any, source: str) -> None:
        if isinstance(theirs, str) and key.endswith("dtype"):
            theirs = PRECISIONS.get(theirs.removeprefix("torch."), theirs.removeprefix("torch."))
        if theirs != self.value:
            raise ConfigError(
                f"{source}: {key} is {theirs!r}, {self.name} here is {self.shown!r}; make them "
                f"agree, write '{AUTO}' or leave it out"
            )


def _rules(config: TrainConfig) -> dict[str, _Rule]:
    """DeepSpeed's keys that our configuration decides."""
    ours, deepspeed, counts = config.optimizer, config.deepspeed, config.worker_counts
    share = config.global_batch // counts[0] if len(counts) == 1 else AUTO
    rules = {
        "train_batch_size": _equal("global_batch", config.global_batch),
        "train_micro_batch_size_per_gpu": _equal("global_batch / scaling.num_workers", share),
        "gradient_accumulation_steps": _equal("the only choice", 1),
        "managed_gradient_accumulation": _equal("the only choice", True),
        "gradient_allreduce_op": _equal("the only choice", "mean"),
        "gradient_clipping": _Rule(ours.grad_clip or 0.0, "optimizer.grad_clip", ours.grad_clip),
        "zero_allow_untested_optimizer": _equal("the only choice", True),
        "zero_force_ds_cpu_optimizer": _equal("the only choice", False),
        "zero_optimization.stage": _equal("deepspeed.zero_stage", deepspeed.zero_stage),
        "optimizer.type": _equal("the only choice", "AdamW"),
        "optimizer.params.lr": _equal("optimizer.lr", ours.lr),
        "optimizer.params.betas": _equal("optimizer.betas", list(ours.betas)),
        "optimizer.params.eps": _equal("optimizer.eps", ours.eps),
        "optimizer.params.weight_decay": _equal("optimizer.weight_decay", ours.weight_decay),
        "optimizer.params.torch_adam": _equal("the only choice", True),
        "fp16.loss_scale": _equal("the only choice", 0),
    }
    for theirs, name in (
        ("offload_optimizer", "offload_optimizer"),
        ("offload_param", "offload_parameters"),
    ):
        on = getattr(deepspeed, name)
        device = "cpu" if on else "none"
        rules[f"zero_optimization.{theirs}.device"] = _Rule(device, f"deepspeed.{name}", on)
    precision = deepspeed.precision
    for key, value in (
        ("fp16.enabled", precision == "float16"),
        ("bf16.enabled", precision == "bfloat16"),
        ("bfloat16.enabled", precision == "bfloat16"),
        ("torch_autocast.enabled", precision != "float32"),
        ("torch_autocast.dtype", precision),
    ):
        rules[key] = _Rule(value, "deepspeed.precision", precision)
    return rules


def _equal(name: str, value: Any) -> _Rule:
    return _Rule(value, name, value)
