"""Typed configuration of the evaluate stage: one checkpoint, several benchmarks, one report."""

from __future__ import annotations

from pydantic import Field

from caft.config import Config
from pipelines.config import StageConfig


class BenchmarkConfig(Config):
    """A split of a dataset folder, scored on its own."""

    name: str = Field(pattern=r"^[\w-]+$")
    dataset: str = Field(description="folder written by the data stage")
    split: str = "test"
    regions: str | None = Field(
        None, description="regions.jsonl with a mask per sentence; None: no localisation"
    )


class ReportConfig(Config):
    images: int = Field(4, ge=0, description="images per benchmark shown with segments and heat")
    retrievals: int = Field(3, ge=0, description="best and worst retrievals shown")


class EvaluateConfig(StageConfig):
    """Score a checkpoint on retrieval and localisation, and write a report."""

    checkpoint: str
    output: str
    benchmarks: tuple[BenchmarkConfig, ...] = Field(min_length=1)
    alpha: float = Field(0.3, ge=0, le=1, description="weight of the part score when blended")
    batch_size: int = Field(64, gt=0)
    concurrency: int = Field(1, gt=0, description="embedding actors")
    num_gpus_per_actor: float = Field(0.0, ge=0)
    report: ReportConfig = ReportConfig()
