"""DeepSpeed as this project starts it: our configuration in, an engine around the model out.
Between the worker's loop and the library; what ZeRO cuts up is put together in sharding.py."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from pipelines.train.config import TrainConfig
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
    optimizer = torch.optim.AdamW(
        parameter_groups(model, config.optimizer.weight_decay),
        lr=0.0,  # set before every step
        betas=config.optimizer.betas,
        eps=config.optimizer.eps,
        fused=True,
    )
    parameters = sum(p.numel() for p in model.parameters())
    settings = engine_settings(config, dist.get_world_size(), parameters)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]


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
    settings = {
        "train_batch_size": config.global_batch,
        "train_micro_batch_size_per_gpu": config.global_batch // workers,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW needs no compiler
        "gradient_clipping": config.optimizer.grad_clip or 0.0,
        "steps_per_print": 10**9,  # progress and MLflow say it
    }
    if config.deepspeed.precision == "bfloat16":
        settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return settings
