"""Typed configuration of the data stage: where rows come from and what is asked of them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from caft.config import Config
from pipelines.config import StageConfig

CaptionKind = Literal["raw", "short", "long"]

# DreamLIP's published columns: seven captions of one image.
DREAMLIP_URL_COLUMN = "Image Path"
DREAMLIP_CAPTION_COLUMNS: dict[str, CaptionKind] = {
    "raw_caption": "raw",
    "shortIB_captions": "short",
    "longIB_captions": "long",
    "shortSV_captions": "short",
    "longSV_captions": "long",
    "shortLLA_captions": "short",
    "longLLA_captions": "long",
}


class SourceConfig(Config):
    """One list of image URLs with captions: CSV, TSV or Parquet."""

    name: str
    path: str
    split: str = "train"
    licence: str = Field("", description="a note that travels into the manifest")
    url_column: str = DREAMLIP_URL_COLUMN
    caption_columns: dict[str, CaptionKind] = Field(
        default_factory=lambda: dict(DREAMLIP_CAPTION_COLUMNS),
        description="column -> kind; columns a file lacks are passed over, but one must be there",
    )


class DownloadConfig(Config):
    """How images are fetched."""

    threads: int = Field(32, gt=0, description="concurrent requests of one task")
    timeout_s: float = Field(10.0, gt=0, description="for connecting and for each read")
    deadline_s: float = Field(60.0, gt=0, description="for a whole image, redirects included")
    retries: int = Field(1, ge=0, description="further tries after a transient failure")
    max_bytes: int = Field(64 * 2**20, gt=0)
    max_redirects: int = Field(5, ge=0)
    user_agent_token: str = Field("caft", description="named in requests and in robots rules")
    allow_private_hosts: tuple[str, ...] = Field(
        (), description="hosts that may resolve to private or loopback addresses"
    )


class ImageConfig(Config):
    """What an image must be, and how it is stored."""

    max_side_px: int = Field(512, gt=0, description="longer images are shrunk, aspect kept")
    min_side_px: int = Field(32, gt=0)
    max_pixels: int = Field(100_000_000, gt=0, description="more is a decompression bomb")
    jpeg_quality: int = Field(92, ge=1, le=100, description="for images that were shrunk")


class CaptionConfig(Config):
    split_mode: Literal["default", "reference"] = "default"
    min_chars: int = Field(3, ge=1, description="shorter sentences are dropped")


class DataConfig(StageConfig):
    """Turn lists of image URLs and captions into a Parquet dataset, with every row accounted."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    output: str
    chunk_rows: int = Field(10_000, gt=0, description="rows per part file and unit of recovery")
    row_group_rows: int = Field(128, gt=0)
    concurrency: int = Field(4, gt=0, description="chunks in work at a time")
    download: DownloadConfig = DownloadConfig()
    image: ImageConfig = ImageConfig()
    captions: CaptionConfig = CaptionConfig()
