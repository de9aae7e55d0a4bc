"""Typed configuration of the train stage. Batches are global: the number of workers changes
how they are shared, never what is learned."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from caft.config import Config, ModelChoice, Seed
from pipelines.config import StageConfig

PositiveInt = Annotated[int, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]


def _in_order(workers: int | tuple[int, int]) -> int | tuple[int, int]:
    if not isinstance(workers, int) and workers[0] > workers[1]:
        raise ValueError(f"num_workers [{workers[0]}, {workers[1]}]: the fewest come first")
    return workers


WorkerCount = Annotated[PositiveInt | tuple[PositiveInt, PositiveInt], AfterValidator(_in_order)]
MODEL_OF_START = "start_from"
MOST_BATCH_NORM_IMAGES = 32  # of the default: enough for statistics, small enough to stay local


class OptimizerConfig(Config):
    """AdamW and its learning rate; 1-D parameters (biases, norms, scales) are not decayed."""

    lr: float = Field(5e-4, gt=0, description="highest rate, reached at the end of the warm-up")
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.5, ge=0)
    warmup_steps: int = Field(2000, ge=0)
    grad_clip: float | None = Field(None, gt=0, description="global norm; None: no clipping")
    schedule: Literal["cosine", "constant", "constant_cooldown"] = Field(
        "cosine", description="after the warm-up; constant_cooldown falls at the end of the run"
    )
    min_lr: float = Field(0.0, ge=0, description="where the cosine and the cool-down end")
    cooldown_steps: int | None = Field(
        None, gt=0, description="last steps of constant_cooldown; None: cooldown_fraction of all"
    )
    cooldown_fraction: float = Field(0.2, gt=0, le=1)
    cooldown_shape: Literal["linear", "1-sqrt"] = "1-sqrt"

    @model_validator(mode="after")
    def _consistent(self) -> OptimizerConfig:
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr:g} is above lr {self.lr:g}")
        if self.schedule != "constant_cooldown" and self.cooldown_steps is not None:
            raise ValueError(
                f"cooldown_steps {self.cooldown_steps} needs schedule constant_cooldown, "
                f"not {self.schedule}"
            )
        return self


class CropConfig(Config):
    """The random crop of a picture in training; the defaults are the published ones."""

    min_scale: float = Field(0.9, gt=0, le=1, description="least share of the picture's area")
    ratio: tuple[float, float] | None = Field(
        (3 / 4, 4 / 3),
        description="least and greatest width over height, resized bicubically; null: the "
        "picture's own shape, resized by averages",
    )

    @model_validator(mode="after")
    def _consistent(self) -> CropConfig:
        if self.ratio is not None and not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ValueError(
                f"ratio [{self.ratio[0]:g}, {self.ratio[1]:g}]: width over height is above 0, the "
                "least comes first"
            )
        return self


class CacheConfig(Config):
    """Row groups kept on a disk of each node, so that later epochs ask the storage for nothing."""

    folder: str = Field(pattern="^/", description="on a fast disk of each node, an absolute path")
    max_gb: float = Field(gt=0, description="of all datasets; what does not fit is read again")


class IngestConfig(Config):
    """How rows reach the workers. Order depends on seed, epoch and these values alone."""

    lanes: int = Field(64, gt=0, description="independent readers; a multiple of the workers")
    window_steps: int = Field(16, gt=0, description="steps whose rows are shuffled together")
    crop: CropConfig = CropConfig()
    flip_probability: float = Field(
        0.0, ge=0, le=1, description="mirrored samples; captions speak of left and right"
    )
    extra_parts: int = Field(4, ge=0, description="sub-captions beside the chunks (K = both)")
    loaders_per_worker: int = Field(1, gt=0, description="concurrent Ray Data decoding tasks")
    cache: CacheConfig | None = Field(
        None, description="on each node; None: every epoch reads the dataset where it lies"
    )


class ScalingConfig(Config):
    """What each Ray Train worker gets, and what it trades: speed and memory, not the result."""

    num_workers: WorkerCount = Field(
        1, description="[least, most]: as many as there is room for, fewer when nodes go away"
    )
    wait_s: float | None = Field(
        None, ge=0, description="for missing workers, then fail; 0: fail at once; None: for ever"
    )
    grow_every_s: float = Field(
        120.0, gt=0, description="seconds that a group of workers trains before it may grow"
    )
    use_gpu: bool = False
    cpus_per_worker: float = Field(1.0, gt=0)
    threads_per_worker: int | None = Field(None, gt=0, description="None: torch's own choice")
    compile: bool = Field(False, description="torch.compile; the first steps take minutes")
    recompute_activations: bool = Field(
        False, description="run every block again in backward: less memory, a third more work"
    )
    micro_batch: int | None = Field(
        None, gt=0, description="images of a worker that are encoded at a time; None: all of them"
    )
    max_failures: int = Field(
        3, ge=0, description="failures without a new checkpoint in between before giving up"
    )

    @property
    def workers_range(self) -> tuple[int, int]:
        """The fewest and the most workers; equal unless the run is elastic."""
        if isinstance(self.num_workers, int):
            return self.num_workers, self.num_workers
        return self.num_workers


class DeepSpeedConfig(Config):
    """How DeepSpeed shares the work; `file` adds settings of its own to those that follow."""

    zero_stage: Literal[0, 1, 2, 3] = Field(
        0, description="cut over workers: 1 the optimiser, 2 gradients too, 3 weights too"
    )
    offload_optimizer: bool = Field(False, description="keep and step the optimiser on the host")
    offload_parameters: bool = Field(
        False, description="keep weights that are not in use on the host; zero_stage 3 alone"
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32",
        description="of matrix products; weights, moments and sums stay in float32. float16 scales "
        "the loss",
    )
    residuals: Literal["float32", "as_products"] = Field(
        "float32",
        description="precision of the blocks' residual stream; as_products moves fewer bytes and "
        "has not been shown to learn as well",
    )
    file: str | dict[str, Any] | None = Field(
        None, description="DeepSpeed's own JSON: its path, or the mapping itself"
    )


class GuardConfig(Config):
    """What happens at a step whose loss or gradients are not finite: its update is never made."""

    policy: Literal["stop", "skip"] = Field(
        "stop", description="stop the run, or go on without that step"
    )
    max_skips: int = Field(
        10, gt=0, description="skipped steps in a row that the run goes on after"
    )


class ProfileConfig(Config):
    """Steps of some workers under torch.profiler. A file `profile` in the output asks for as many
    of a run that is under way."""

    start_step: int | None = Field(
        None, gt=0, description="first step of the trace; None: none until somebody asks"
    )
    steps: int = Field(3, gt=0, le=100, description="length of a trace")
    workers: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0,), min_length=1, description="ranks that are traced"
    )


class CheckpointConfig(Config):
    """When checkpoints are saved, and which of them stay. The newest always does."""

    every_steps: int = Field(1000, gt=0)
    at_steps: tuple[PositiveInt, ...] = Field(
        (), description="further steps to save after; these checkpoints stay for ever"
    )
    keep: int = Field(2, gt=0, description="newest checkpoints that stay")
    keep_every_steps: int | None = Field(
        None, gt=0, description="checkpoints at multiples of this stay for ever"
    )
    keep_best: int = Field(0, ge=0, description="checkpoints with the best best_metric that stay")
    best_metric: str = Field("loss/total", description="a metric as MLflow has it")
    best_is: Literal["lowest", "highest"] = "lowest"

    def due(self, step: int) -> bool:
        """Whether a checkpoint is saved after `step`."""
        return step % self.every_steps == 0 or step in self.at_steps


class AverageConfig(Config):
    """An exponential moving average of the weights; it becomes the run's final model."""

    decay: float = Field(0.9999, gt=0, lt=1)
    every_steps: int = Field(1, gt=0, description="steps between updates")


class FineTuneConfig(Config):
    """How a run that begins with trained weights changes them, beside a smaller learning rate."""

    freeze: tuple[str, ...] = Field(
        (), description="names of parameters that are not trained, such as image_encoder.*"
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="factor on the learning rate for each layer that is above a layer in its tower",
    )
    start_share: float = Field(
        0.0, ge=0, lt=1, description="share of the start's weights in the final ones (WiSE-FT)"
    )


class StartConfig(Config):
    """A checkpoint that a new run begins with, of any other run or a released file."""

    checkpoint: str = Field(description="checkpoint folder, .safetensors or released file")
    state: bool = Field(
        False,
        description="go on from its step with its optimiser, as a cool-down does from a run at a "
        "constant rate; else from step 0 with its weights alone",
    )
    accept_other_dataset: bool = Field(
        False, description="of `state`: continue on another dataset than it was trained on"
    )


class SubsetConfig(Config):
    """A random part of the split. Of one seed, the smaller ones lie in the larger ones."""

    rows: int = Field(gt=0)
    seed: Seed = 0


class EvaluationConfig(Config):
    """A small held-out set that is scored beside training, as a Ray task of its own."""

    every_steps: int = Field(1000, gt=0)
    dataset: str | None = Field(
        None, description="folder written by the data stage; None: the one that is trained on"
    )
    split: str = "test"
    images: int = Field(1000, gt=1, description="most of them: the first of the split")
    alpha: float = Field(0.3, ge=0, le=1, description="weight of the part score when blended")
    batch_size: int = Field(64, gt=0, description="images encoded at a time")
    heat_maps: int = Field(
        2, ge=0, le=16, description="images whose heat maps are logged to MLflow; 0: none"
    )
    num_cpus: float = Field(1.0, gt=0, description="that the task reserves while it runs")
    num_gpus: float = Field(0.0, ge=0, description="0: it computes on its CPUs")
    wait_s: float = Field(
        300.0, ge=0, description="for room for the last one, once training has ended"
    )


class TrainConfig(StageConfig):
    """Pretrain CAFT on a dataset folder, with Ray Train and DeepSpeed."""

    dataset: str = Field(description="folder written by the data stage")
    output: str
    split: str = "train"
    subset: SubsetConfig | None = Field(None, description="None: every row of the split")
    model: ModelChoice = Field(
        "caft_b", description=f"{MODEL_OF_START}: that of start_from.checkpoint"
    )
    epochs: float = Field(32, gt=0)
    global_batch: int = Field(2048, gt=1)
    block_size: int = Field(256, gt=1, description="images per logical block of the loss")
    batch_norm_images: int | None = Field(
        None,
        gt=0,
        description="images per block of batch statistics, at most global_batch of them; None: the "
        "largest divisor of global_batch up to 32",
    )
    seed: Seed = 0
    log_every_steps: int = Field(20, gt=0)
    optimizer: OptimizerConfig = OptimizerConfig()
    ingest: IngestConfig = IngestConfig()
    scaling: ScalingConfig = ScalingConfig()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    average: AverageConfig | None = Field(None, description="None: the final weights are the last")
    start_from: StartConfig | None = Field(None, description="None: from random weights")
    fine_tune: FineTuneConfig | None = Field(None, description="None: all weights alike")
    guard: GuardConfig = GuardConfig()
    profile: ProfileConfig = ProfileConfig()
    evaluation: EvaluationConfig | None = Field(None, description="None: only afterwards")

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        lanes = self.ingest.lanes
        if self.global_batch % lanes:
            raise ValueError(f"global_batch {self.global_batch} is not a multiple of lanes {lanes}")
        if self.global_batch % min(self.block_size, self.global_batch):
            raise ValueError(
                f"global_batch {self.global_batch} is not a multiple of block_size "
                f"{self.block_size}"
            )
        if self.global_batch % self.batch_norm_block:
            raise ValueError(
                f"global_batch {self.global_batch} is not a multiple of batch_norm_images "
                f"{self.batch_norm_images}"
            )
        for key, asked in (("model", self.model == MODEL_OF_START), ("fine_tune", self.fine_tune)):
            if asked and self.start_from is None:
                raise ValueError(f"{key}: set start_from.checkpoint to the model to fine-tune")
        if self.fine_tune and self.start_from and self.start_from.state:
            raise ValueError("fine_tune begins at step 0: set start_from.state to false")
        held_out = self.evaluation
        if held_out and held_out.split == self.split and held_out.dataset in (None, self.dataset):
            raise ValueError(
                f"evaluation.split '{held_out.split}' is the one that is trained on; choose another"
            )
        zero = self.deepspeed
        if zero.offload_optimizer and zero.zero_stage == 0:
            raise ValueError(
                "deepspeed.offload_optimizer needs deepspeed.zero_stage 1, 2 or 3, not 0"
            )
        if zero.offload_parameters and zero.zero_stage != 3:
            raise ValueError(
                f"deepspeed.offload_parameters needs deepspeed.zero_stage 3, not {zero.zero_stage}"
            )
        if zero.precision == "float16" and zero.zero_stage == 0:
            raise ValueError(
                "deepspeed.precision float16 needs deepspeed.zero_stage 1, 2 or 3, whose "
                "optimisers undo the scaling of the loss; on one worker stage 1 is as good as 0"
            )
        if self.scaling.compile and zero.zero_stage == 3:
            raise ValueError(
                "scaling.compile does not go with deepspeed.zero_stage 3, which fetches weights "
                "between the operations; use stage 2 or less"
            )
        least, most = self.scaling.workers_range
        if not self.worker_counts:
            several = "" if least == most else f"no number of workers from {least} to {most} fits: "
            raise ValueError(f"{several}{self._misfit(most)}")
        return self

    @property
    def worker_counts(self) -> tuple[int, ...]:
        """The numbers of workers that a global batch can be dealt to, ascending."""
        least, most = self.scaling.workers_range
        return tuple(n for n in range(least, most + 1) if self._misfit(n) is None)

    def _misfit(self, workers: int) -> str | None:
        """Why so many workers cannot share this configuration's batches; None where they can."""
        if self.ingest.lanes % workers:
            return f"ingest.lanes {self.ingest.lanes} must be a multiple of num_workers {workers}"
        share, block = self.global_batch // workers, self.batch_norm_block
        micro_batch = self.scaling.micro_batch
        if micro_batch is not None and (problem := _micro_batch_misfit(micro_batch, share, block)):
            return problem
        if self.scaling.compile and share % block:
            return (
                f"scaling.compile needs whole blocks of batch_norm_images {block} in the {share} "
                f"images of a worker (global_batch / num_workers); set that to a divisor of "
                f"{share} or scaling.compile to false"
            )
        return None

    @property
    def batch_norm_block(self) -> int:
        """Images whose statistics batch normalisation takes together."""
        if self.batch_norm_images is not None:
            return min(self.batch_norm_images, self.global_batch)
        most = min(MOST_BATCH_NORM_IMAGES, self.global_batch)
        return next(n for n in range(most, 0, -1) if self.global_batch % n == 0)


def _micro_batch_misfit(micro_batch: int, images: int, block: int) -> str | None:
    """Why micro-batches do not share a worker's `images` without rest, or cut a block of batch
    normalisation; None where they fit."""
    possible = [n for n in range(block, images + 1, block) if images % n == 0]
    if micro_batch in possible:
        return None
    if possible:
        fitting = "one of " + ", ".join(map(str, possible))
    else:
        fitting = f"none unless batch_norm_images divides {images}"
    return (
        f"scaling.micro_batch {micro_batch} must divide the {images} images of a worker "
        f"(global_batch / num_workers) and be a multiple of batch_norm_images {block}; "
        f"possible: {fitting}"
    )
