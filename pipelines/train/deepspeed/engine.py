"""DeepSpeed as this project starts it: our configuration in, an engine around the model out.
Between the worker's loop and the library; what ZeRO cuts up is put together in sharding.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from caft.errors import ConfigError
from caft.fine_tuning import layer_scales
from pipelines.train.config import TrainConfig
from pipelines.train.deepspeed.buckets import GradientBuckets
from pipelines.train.deepspeed.config import loss_scale_section, with_own_settings
from pipelines.train.deepspeed.loss_scale import start_loss_scaling
from pipelines.train.distributed import TrainingModel
from pipelines.train.schedule import parameter_groups

MOST_REDUCED_AT_ONCE = 100_000_000  # numbers of gradients


def start_engine(model: TrainingModel, config: TrainConfig) -> Any:
    """A DeepSpeed engine for `model`; every worker calls it, with the same weights."""
    import deepspeed
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    # On CPUs DeepSpeed would compile its own shared-memory all-reduce behind a lock file. A worker
    # killed while it compiles leaves the lock, and every later run on that machine waits for ever.
    deepspeed.ops.__compatible_ops__[ShareMemCommBuilder.NAME] = False
    parameters = sum(p.numel() for p in model.parameters())
    settings = engine_settings(config, dist.get_world_size(), parameters)
    optimizer = _optimizer(model, config)
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]
    engine.gradient_buckets = None
    if not config.deepspeed.zero_stage:
        engine.enable_backward_allreduce = False  # ours sums while backward runs
        if dist.get_world_size() > 1:
            engine.gradient_buckets = GradientBuckets(model.parameters_in_order())
    if config.deepspeed.precision == "float16":
        start_loss_scaling(engine, loss_scale_section(config.deepspeed))
    return engine


def backward(engine: Any, share: Tensor) -> None:
    """Leave the gradients of the sum of all workers' `share` of a loss in every worker's engine."""
    buckets = getattr(engine, "gradient_buckets", None)
    if buckets is None:
        engine.backward(share * dist.get_world_size())  # DeepSpeed averages
    else:
        engine.backward(share)
        buckets.finish()


def engine_settings(config: TrainConfig, workers: int, parameters: int) -> dict[str, Any]:
    """DeepSpeed's own configuration. It never accumulates gradients: micro-batches are ours."""
    zero: dict[str, Any] = {
        "stage": config.deepspeed.zero_stage,
        # Buffers of this many numbers are allocated at once; DeepSpeed's own choice is 500 million.
        "reduce_bucket_size": min(parameters, MOST_REDUCED_AT_ONCE),
        # Weights are let go once used. Kept for a use to come, a model of this size would never
        # be cut, and looking for those uses takes minutes where micro-batches make them many.
        "stage3_max_reuse_distance": 0,
    }
    if config.deepspeed.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": config.scaling.use_gpu}
    if config.deepspeed.offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": config.scaling.use_gpu}
    settings = {
        "train_batch_size": config.global_batch,
        "train_micro_batch_size_per_gpu": config.global_batch // workers,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW needs no compiler
        # At stage 0 our own optimiser clips, by the norm that it needs anyway.
        "gradient_clipping": (config.optimizer.grad_clip or 0.0) if zero["stage"] else 0.0,
        "steps_per_print": 10**9,  # progress and MLflow say it
        "timers": {"throughput": {"enabled": False}},  # it waits for the device twice a step
    }
    if config.deepspeed.precision != "float32":
        settings["torch_autocast"] = {
            "enabled": True,
            "dtype": config.deepspeed.precision,
            # Gradients of layers named here would be summed in that precision at ZeRO 1 to 3.
            "lower_precision_safe_modules": [],
        }
    return with_own_settings(settings, config.deepspeed)


def check_settings(config: TrainConfig) -> None:
    """Let DeepSpeed itself read the settings that a resolved `deepspeed.file` makes.

    Raises:
        ConfigError: it refuses them.
    """
    from deepspeed.runtime.config import DeepSpeedConfig

    try:
        DeepSpeedConfig(engine_settings(config, 1, MOST_REDUCED_AT_ONCE))
    except Exception as error:  # AssertionError, ValueError, pydantic's and its own
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"deepspeed.file: DeepSpeed refuses it: {reason}") from None


def _optimizer(model: TrainingModel, config: TrainConfig) -> torch.optim.Optimizer:
    ours, scales = config.optimizer, None
    if config.fine_tune is not None:
        of_layers = layer_scales(model.model, config.fine_tune.layer_decay)
        scales = {f"model.{name}": scale for name, scale in of_layers.items()}
    groups = parameter_groups(model, ours.weight_decay, scales)
    rest: dict[str, Any] = {"lr": 0.0, "betas": ours.betas, "eps": ours.eps}  # lr: at every step
    if config.deepspeed.zero_stage:
        return torch.optim.AdamW(groups, fused=True, **rest)
    return FiniteAdamW(groups, ours.grad_clip, **rest)


class FiniteAdamW(torch.optim.AdamW):
    """AdamW that decides on the device whether to step, so that the host never waits for it.

    The fused kernels read `found_inf` where they would write: with it set, weights, moments and
    step counts stay as they are. The norm is that of gradients already summed over workers, so
    all of them decide alike.

    Args:
        max_norm: global norm to which gradients are clipped; None: they are not.
    """

    found_inf: Tensor  # 1.0 after an update that was not made, else 0.0

    def __init__(self, groups: list[dict], max_norm: float | None, **options: Any) -> None:
        super().__init__(groups, fused=True, **options)
        self._max_norm = max_norm
        self._global_grad_norm: Tensor | None = None  # where DeepSpeed's engine looks for it

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:  # type: ignore[override]
        """One update from the gradients at hand, unless one of them is not finite."""
        parameters = [
            p for group in self.param_groups for p in group["params"] if p.grad is not None
        ]
        norm = get_total_norm([p.grad for p in parameters])
        if self._max_norm is not None:
            clip_grads_with_norm_(parameters, self._max_norm, norm)
        self._global_grad_norm = norm
        self.found_inf = (~norm.isfinite()).float()
        super().step(closure)
