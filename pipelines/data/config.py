"""Typed configuration of the data stage: where rows come from and what is asked of them.
Read before anything starts; its resolved form is stored with the dataset."""

from __future__ import annotations

import codecs
import math
import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from caft.config import Config, SuperpixelConfig
from pipelines.config import StageConfig

NAMED_DELIMITERS = {"tab": "\t", r"\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|"}
CaptionKind = Literal["raw", "short", "long"]
Interpolation = Literal[
    "nearest", "linear", "bilinear", "cubic", "bicubic", "area", "lanczos", "lanczos4"
]
OWN_RESIZER_KEYS = ("max_side_px", "jpeg_quality")
SourceKind = Literal[
    "auto",
    "table",
    "cc3m",
    "cc12m",
    "sharegpt4v",
    "webdataset",
    "embedded",
    "folder",
    "dataset",
]


class ListConfig(Config):
    """How a list, or the texts of a collection of images, are read."""

    path: str = Field(description="file, folder or glob; local, s3:// or another fsspec URL")
    caption_columns: dict[str, CaptionKind] | None = Field(
        None,
        description="column -> kind; columns a file lacks are passed over, but one must be "
        "there; None: found by their names",
    )
    encoding: str | None = Field(
        None, description="of a list or of texts; None: told by its bytes, UTF-8 where unmarked"
    )
    delimiter: str | None = Field(
        None, description="of a list, one character; None: told by its bytes"
    )
    quoting: Literal["doubled", "escaped", "none"] | None = Field(
        None,
        description="how a list writes a quote inside of a quoted cell: twice or behind a "
        "backslash; none: quotes are text; None: told by its bytes",
    )
    max_bad_share: float = Field(
        0.05,
        ge=0,
        le=1,
        description="of the first thousand rows that are broken or damaged text; more is refused",
    )

    @field_validator("encoding")
    @classmethod
    def _encoding_is_known(cls, encoding: str | None) -> str | None:
        if encoding is not None:
            try:
                codecs.lookup(encoding).incrementaldecoder  # noqa: B018
                "".encode(encoding)
            except LookupError:
                raise ValueError(f"encoding: Python knows no text encoding {encoding!r}") from None
        return encoding

    @field_validator("delimiter")
    @classmethod
    def _delimiter_is_one_character(cls, delimiter: str | None) -> str | None:
        plain = NAMED_DELIMITERS.get(delimiter or "", delimiter)
        if plain is not None and (len(plain) != 1 or not plain.isascii() or plain in '"\n\r'):
            named = ", ".join(NAMED_DELIMITERS)
            raise ValueError(f"delimiter: {delimiter!r} is not one character, nor one of {named}")
        return plain


class CaptionsFrom(ListConfig):
    """A list whose captions are joined to the images of a source, in place of their own."""

    on: Literal["url", "key", "stem"] = Field(
        "url",
        description="what is equal in an image and its caption rows: a URL, a key, or a file's "
        "name without folder and ending",
    )
    image_field: str | None = Field(
        None,
        description="of an image, that holds it: `json.NAME` beside it, or a column; None: its "
        "URL or `json.url`, its `json.key`, its own name",
    )
    column: str | None = Field(
        None, description="of the caption list, that holds it; None: its URL column, or `key`"
    )

    @model_validator(mode="before")
    @classmethod
    def _plain_on_is_no_boolean(cls, fields: object) -> object:
        """YAML reads a plain `on` as true."""
        if isinstance(fields, dict) and True in fields:
            return {"on" if name is True else name: value for name, value in fields.items()}
        return fields


class SourceConfig(ListConfig):
    """One list of image URLs with captions, or one collection of images with captions."""

    name: str
    kind: SourceKind = "auto"
    split: str | None = Field(None, description="None: 'train', or what a dataset says")
    licence: str = Field("", description="a note that travels into the manifest")
    weight: float = Field(
        1.0, gt=0, le=1, description="share of the rows that is taken, always the same ones"
    )
    url_column: str | None = Field(None, description="None: found by its name")
    image_root: str | None = Field(
        None, description="folder or URL before relative image paths; None: the file's folder"
    )
    captions_from: CaptionsFrom | None = Field(
        None, description="a list whose captions take the place of those beside the images"
    )

    @property
    def needs_captions(self) -> bool:
        """Whether captions have to be in its own columns or files."""
        return self.captions_from is None

    @model_validator(mode="after")
    def _captions_come_from_one_place(self) -> SourceConfig:
        if self.captions_from is not None and self.caption_columns is not None:
            raise ValueError(
                "caption_columns: has no effect, as captions_from brings the captions; set "
                "captions_from.caption_columns"
            )
        return self


class DownloadConfig(Config):
    """How images are fetched."""

    connections: int = Field(64, gt=0, description="concurrent requests of one task")
    connections_per_host: int = Field(16, gt=0, description="of one task to one host")
    timeout_s: float = Field(10.0, gt=0, description="for connecting, and without a byte")
    deadline_s: float = Field(
        60.0, gt=0, description="for a row: names, redirects, retries and waiting included"
    )
    retries: int = Field(2, ge=0, description="further tries after a transient failure")
    backoff_s: float = Field(
        1.0, ge=0, description="before the first retry, then doubled; Retry-After goes before it"
    )
    max_bytes: int = Field(64 * 2**20, gt=0)
    max_redirects: int = Field(5, ge=0)
    user_agent_token: str = Field("caft", description="named in requests and in robots rules")
    respect_robots_tag: bool = Field(
        True, description="refuse what X-Robots-Tag forbids: noai, noimageai, noindex"
    )
    allow_private_hosts: tuple[str, ...] = Field(
        (), description="hosts that may resolve to private or loopback addresses"
    )


class Img2datasetConfig(Config):
    """Keys of img2dataset's `Resizer`, by its names and with the defaults of its command."""

    image_size: int = Field(256, gt=0, description="pixels; what it bounds is up to resize_mode")
    resize_mode: Literal["no", "keep_ratio", "center_crop", "border", "keep_ratio_largest"] = (
        "border"
    )
    resize_only_if_bigger: bool = False
    upscale_interpolation: Interpolation = "lanczos"
    downscale_interpolation: Interpolation = "area"
    encode_format: Literal["jpg", "png", "webp"] = "jpg"
    encode_quality: int = Field(95, ge=0, description="of png its compression, 0 to 9")
    skip_reencode: bool = Field(
        False, description="keep files of encode_format that need no resizing as they came"
    )
    disable_all_reencoding: bool = Field(False, description="keep every file as it came")
    min_image_size: int = Field(0, ge=0, description="a shorter side is too_small")
    max_image_area: float | None = Field(
        None, gt=0, description="more pixels are a decompression_bomb; None: any number"
    )
    max_aspect_ratio: float | None = Field(
        None, ge=1, description="long side / short side, more is aspect_ratio; None: any"
    )

    @field_validator("max_image_area", "max_aspect_ratio", mode="before")
    @classmethod
    def _infinite_is_none(cls, value: object) -> object:
        return None if value in (math.inf, "inf") else value  # as img2dataset writes it

    @model_validator(mode="after")
    def _quality_fits_the_format(self) -> Img2datasetConfig:
        most = {"png": 9, "jpg": 100}.get(self.encode_format, math.inf)  # webp: above 100 lossless
        if self.encode_quality > most:
            raise ValueError(
                f"encode_quality {self.encode_quality}: {self.encode_format} takes 0 to {most}"
            )
        return self


class ImageConfig(Img2datasetConfig):
    """What can be decoded, and how it is stored."""

    resizer: Literal["caft", "img2dataset"] = Field(
        "caft",
        description="caft: max_side_px and jpeg_quality; img2dataset: the bytes that its Resizer "
        "makes, by the keys of its names",
    )
    max_side_px: int = Field(512, gt=0, description="longer images are shrunk, aspect kept")
    max_pixels: int = Field(100_000_000, gt=0, description="more is a decompression bomb")
    jpeg_quality: int = Field(92, ge=1, le=100, description="for images that were shrunk")
    decode_timeout_s: float = Field(
        30.0, gt=0, description="for one image; the decoding process is then replaced"
    )

    @model_validator(mode="after")
    def _every_key_has_an_effect(self) -> ImageConfig:
        other = "caft" if self.resizer == "img2dataset" else "img2dataset"
        unread = OWN_RESIZER_KEYS if other == "caft" else tuple(Img2datasetConfig.model_fields)
        for name in unread:
            default = type(self).model_fields[name].default
            if getattr(self, name) != default:
                raise ValueError(
                    f"{name}: only resizer: {other} uses it, here it is {self.resizer}; leave it "
                    f"at {default}, or set resizer"
                )
        return self


class CaptionConfig(Config):
    """How captions become lists of sentences."""

    split_mode: Literal["default", "reference"] = "default"
    min_chars: int = Field(3, ge=1, description="shorter sentences are dropped")
    max_chars: int = Field(
        20_000, gt=0, description="of one caption; the sentences beyond are left out, and counted"
    )


class ColumnFilter(Config):
    """What a column of the source must hold; a row without a value passes."""

    min: float | None = None
    max: float | None = None
    refuse: tuple[str, ...] = Field((), description="values that are refused, as text")

    @model_validator(mode="after")
    def _some_value_fits(self) -> ColumnFilter:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}: no row would pass")
        return self


class SimilarityFilter(Config):
    """The least whole-image similarity of image and captions, by one of our checkpoints."""

    checkpoint: str
    min_cosine: float = Field(ge=-1, le=1)
    batch_size: int = Field(64, gt=0)
    actors: int = Field(1, gt=0)
    gpus_per_actor: float = Field(0.0, ge=0)


class FilterConfig(Config):
    """Thresholds; None leaves a filter out. See docs/data.md for each one's reject reason."""

    min_side_px: int = Field(32, gt=0)
    max_aspect_ratio: float | None = Field(None, gt=1, description="long side / short side")
    min_contrast: float | None = Field(
        2.0, gt=0, description="standard deviation of grey levels; less is near-constant"
    )
    min_caption_chars: int | None = Field(None, gt=0, description="of the longest caption")
    min_sentences: int | None = Field(None, gt=0, description="of all captions together")
    max_repeated_share: float | None = Field(
        None, gt=0, le=1, description="share of a caption's sentences that repeat earlier ones"
    )
    refuse_patterns: tuple[str, ...] = Field(
        (),
        description="regular expressions of templated captions; a row is refused if one matches "
        "anywhere in a caption, its sentences joined by '. '",
    )
    languages: tuple[str, ...] = Field(
        (), description="ISO 639-1 codes, of the longest caption; empty: any"
    )
    columns: dict[str, ColumnFilter] = Field(
        {}, description="column of the source -> what it must hold, such as NSFW scores"
    )
    similarity: SimilarityFilter | None = None

    @field_validator("refuse_patterns")
    @classmethod
    def _patterns_compile(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return patterns


class DuplicateConfig(Config):
    """What counts as the same image twice. Equal URLs always do."""

    same_bytes: bool = True
    near_distance: int | None = Field(
        2, ge=0, le=16, description="bits in which perceptual hashes may differ; None: not asked"
    )
    partition_rows: int = Field(
        20_000_000, gt=0, description="rows that one task compares: bounds its memory"
    )


class EvaluationSet(Config):
    """Images that must not be trained on."""

    name: str
    path: str = Field(description="folder of images, WebDataset tars or a dataset of this stage")


class DecontaminationConfig(Config):
    """Removes near-duplicates of evaluation images, mirrored ones too."""

    sets: tuple[EvaluationSet, ...] = ()
    distance: int = Field(4, ge=0, le=16, description="bits in which perceptual hashes may differ")


class StoredSuperpixels(Config):
    """Superpixels computed here once, so that training spends nothing on them."""

    segmenter: SuperpixelConfig = SuperpixelConfig()
    image_size_px: int = Field(224, gt=0, description="the model's input size")
    map_size_px: int = Field(112, gt=0, description="the stored map's: half costs half the bytes")

    @model_validator(mode="after")
    def _divides(self) -> StoredSuperpixels:
        if self.image_size_px % self.map_size_px:
            raise ValueError(
                f"map_size_px {self.map_size_px} does not divide image_size_px "
                f"{self.image_size_px}; set that, or half of it"
            )
        return self


class DataConfig(StageConfig):
    """Turn lists of image URLs and captions into a Parquet dataset, with every row accounted."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    output: str
    chunk_rows: int = Field(10_000, gt=0, description="rows per unit of work and of recovery")
    chunk_mb: int = Field(
        512, gt=0, description="bytes of a tar that are one unit of work; a larger one is cut"
    )
    file_mb: int = Field(512, gt=0, description="size of a part file, reached by whole chunks")
    row_group_rows: int = Field(128, gt=0)
    concurrency: int | None = Field(
        None, gt=0, description="chunks in work at a time; None: two per CPU of the cluster"
    )
    stall_timeout_s: float = Field(
        300.0, gt=0, description="a chunk of which no row moves for so long is started again"
    )
    download: DownloadConfig = DownloadConfig()
    image: ImageConfig = ImageConfig()
    captions: CaptionConfig = CaptionConfig()
    filters: FilterConfig = FilterConfig()
    duplicates: DuplicateConfig = DuplicateConfig()
    decontamination: DecontaminationConfig = DecontaminationConfig()
    superpixels: StoredSuperpixels | None = None

    @model_validator(mode="after")
    def _names_differ(self) -> DataConfig:
        names = [source.name for source in self.sources]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"sources: two are named {repeated[0]!r}; give each its own name")
        return self
