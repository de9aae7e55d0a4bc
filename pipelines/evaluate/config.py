"""Typed configuration of the evaluate stage: one checkpoint, several benchmarks, one report."""

from __future__ import annotations

from pydantic import Field, field_validator

from caft.config import Config
from pipelines.config import StageConfig


class BenchmarkConfig(Config):
    """A split of a dataset folder, scored on its own."""

    name: str = Field(pattern=r"^[\w-]+$", description="what metrics and report call it")
    dataset: str = Field(description="folder written by the data stage")
    split: str = "test"
    regions: str | None = Field(
        None, description="regions.jsonl with a mask per sentence; None: no localisation"
    )


class ReportConfig(Config):
    """How much each benchmark shows in the report; the numbers do not depend on it."""

    images: int = Field(4, ge=0, description="images with their segments and heat maps")
    sentences: int = Field(8, gt=0, description="most heat maps of one image")
    retrievals: int = Field(3, ge=0, description="best and as many worst retrievals")


class EvaluateConfig(StageConfig):
    """Score a checkpoint on retrieval and localisation, and write a report."""

    checkpoint: str = Field(description="checkpoint folder, or a .safetensors file")
    output: str
    benchmarks: tuple[BenchmarkConfig, ...] = Field(min_length=1)
    alpha: float = Field(0.3, ge=0, le=1, description="weight of the part score when blended")
    batch_size: int = Field(64, gt=0, description="images encoded at a time")
    concurrency: int = Field(1, gt=0, description="actors that hold the model")
    num_gpus_per_actor: float = Field(0.0, ge=0)
    report: ReportConfig = ReportConfig()

    @field_validator("benchmarks")
    @classmethod
    def _unique(cls, benchmarks: tuple[BenchmarkConfig, ...]) -> tuple[BenchmarkConfig, ...]:
        names = [benchmark.name for benchmark in benchmarks]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two benchmarks are called '{name}'; rename one")
        return benchmarks
