"""Typed configuration of the embed stage: images, the model that reads them, what is kept."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from caft.config import Config
from pipelines.config import StageConfig
from pipelines.data.config import DataConfig, DownloadConfig, ImageConfig, SourceConfig, SourceKind

GROUP_ROWS, LARGE_GROUP_ROWS = 4096, 64  # of a row group; of one whose rows are tens of kilobytes


class ImageSource(SourceConfig):
    """A source of the data stage of which the images alone are read."""

    @property
    def needs_captions(self) -> bool:
        return False


class ImagesConfig(Config):
    """Images, with captions or without."""

    path: str = Field(
        description="a dataset of the data stage, a folder of images, tars, Parquet with images, "
        "or a list of URLs or paths; local, s3:// or another fsspec URL"
    )
    kind: SourceKind = "auto"
    url_column: str | None = Field(None, description="of a list; None: found by its name")
    image_root: str | None = Field(
        None, description="folder or URL before relative image paths; None: the file's folder"
    )
    weight: float = Field(
        1.0, gt=0, le=1, description="share of the rows that is taken, always the same ones"
    )

    def as_source(self) -> SourceConfig:
        return ImageSource(name="source", **self.model_dump())


class EmbedConfig(StageConfig):
    """Embed images by a checkpoint, for search: python -m pipelines.embed SOURCE checkpoint=...
    output=..."""

    first_word: ClassVar[str | None] = "source.path"

    source: ImagesConfig
    checkpoint: str = Field(
        description="as the evaluate stage takes it: a checkpoint folder or file, hf:NAME, "
        "open_clip:MODEL:PRETRAINED or python:MODULE:FUNCTION"
    )
    output: str
    fine: bool = Field(
        False,
        description="also keep what a caption's parts are compared with: 64 KB a row of CAFT-B",
    )
    images: bool = Field(
        False, description="also keep the images, so that a search does not ask the source for them"
    )
    batch_size: int = Field(64, gt=0, description="images encoded at a time")
    concurrency: int = Field(1, gt=0, description="actors that hold the model")
    num_gpus_per_actor: float = Field(0.0, ge=0)
    chunk_rows: int = Field(2_000, gt=0, description="rows of a list that one task reads")
    chunk_mb: int = Field(128, gt=0, description="of a tar that one task reads")
    piece_mb: int = Field(
        32,
        gt=0,
        description="of prepared images that are encoded and written at a time: the unit of "
        "recovery, about 200 images of 224 pixels",
    )
    file_mb: int = Field(512, gt=0, description="size of a part file, reached by whole chunks")
    download: DownloadConfig = DownloadConfig()
    image: ImageConfig = ImageConfig()

    def as_data(self) -> DataConfig:
        """What the data stage's plan and readers are told."""
        return DataConfig(
            sources=(self.source.as_source(),),
            output=self.output,
            chunk_rows=self.chunk_rows,
            chunk_mb=self.chunk_mb,
            file_mb=self.file_mb,
            row_group_rows=LARGE_GROUP_ROWS if self.fine or self.images else GROUP_ROWS,
            download=self.download,
            image=self.image,
        )
