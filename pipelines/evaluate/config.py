"""Typed configuration of the evaluate stage: checkpoints, benchmarks, and what is asked of them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
)

from caft.captions import Rule
from caft.config import Config, PictureRule, Seed
from pipelines import storage
from pipelines.config import StageConfig

ShownBy = Annotated[
    PictureRule | None,
    Field(
        description="how every model is shown the pictures: 'squash', whole, or 'crop', their "
        "centre. None: by its own rule, or whole where there are regions or label maps, which may "
        "lie outside a crop"
    ),
]


class BenchmarkConfig(Config):
    """A split of a dataset folder, scored on its own."""

    name: str = Field(pattern=r"^[\w-]+$", description="what metrics and report call it")
    dataset: str = Field(description="folder written by the data stage")
    split: str = "test"
    regions: str | None = Field(
        None, description="regions.jsonl with a mask per sentence; None: no localisation"
    )
    preprocess: ShownBy = None


def _hold_the_name(templates: tuple[str, ...]) -> tuple[str, ...]:
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"'{template}' has no {{}} for the name of the class")
    return templates


Templates = Annotated[
    tuple[str, ...],
    Field(min_length=1, description="texts, with {} for the class's name"),
    AfterValidator(_hold_the_name),
]


class PublishedConfig(Config):
    """A benchmark as its publishers lay it out; docs/benchmarks.md shows the layouts."""

    name: str = Field(pattern=r"^[\w-]+$", description="what metrics and report call it")
    set: str = Field(description="docci, coco, refcoco, ...: see docs/benchmarks.md")
    root: str = Field(description="folder it was unpacked into")
    split: str | None = Field(None, description="None: the one that papers report")
    images: tuple[str, ...] = Field(
        (), description="folders to look for its images in, in place of the set's own below root"
    )
    sentences: Rule | None = Field(
        None,
        description="rule that captions are split by; None: the one each model was trained with",
    )
    templates: Templates = Field(
        ("a photo of a {}.",), description="of classes, where the set has a class for each pixel"
    )
    partial: bool = Field(
        False, description="score what is there; such numbers do not compare with published ones"
    )
    preprocess: ShownBy = None

    def below(self, folder: str) -> PublishedConfig:
        """With relative paths taken from `folder`."""
        images = tuple(_below(folder, path) for path in self.images)
        return self.model_copy(update={"root": _below(folder, self.root), "images": images})


class LabelledConfig(Config):
    """Zero-shot classification of labelled images by the texts that describe classes."""

    name: str = Field(pattern=r"^[\w-]+$", description="what metrics and report call it")
    labelled: str = Field(description="folder of one folder per class, or Parquet file or folder")
    class_names: str | None = Field(
        None, description="file with a name for each class; None: the names it has"
    )
    templates: Templates = ("a photo of a {}.",)
    count: int | None = Field(None, gt=0, description="images that must be there; None: any")
    image_column: str = Field("image", description="of Parquet")
    label_column: str = Field("label", description="of Parquet")
    preprocess: ShownBy = None

    def below(self, folder: str) -> LabelledConfig:
        """With relative paths taken from `folder`."""
        names = self.class_names and _below(folder, self.class_names)
        update = {"labelled": _below(folder, self.labelled), "class_names": names}
        return self.model_copy(update=update)


def _plain_texts(value: Any) -> Any:
    """One value or several, as CSV spells them: `is: true` finds JSON's true."""
    values = value if isinstance(value, list | tuple) else (value,)
    if not values or not all(isinstance(v, str | bool | int | float | date) for v in values):
        raise ValueError("a text or number is due, or a list of them")
    return tuple(str(v).lower() if isinstance(v, bool) else str(v) for v in values)


class SplitConfig(Config):
    """Which records of a list are scored."""

    model_config = ConfigDict(serialize_by_alias=True)

    field: str = Field(description="field of a record that says its split")
    value: Annotated[tuple[str, ...], BeforeValidator(_plain_texts)] = Field(
        alias="is", description="its value, or a list of them"
    )


def _grouped(value: Any) -> Any:
    """One field or several; a list inside names fields that make up one caption together."""
    fields = (value,) if isinstance(value, str) else value
    if not isinstance(fields, list | tuple):
        raise ValueError("a field's name is due, or a list of them")
    groups = tuple((field,) if isinstance(field, str) else field for field in fields)
    if not groups or not all(groups):
        raise ValueError("name at least one field")
    return groups


class ListConfig(Config):
    """Images with their captions, as a list says: CSV, TSV, JSON Lines, JSON or Parquet."""

    name: str = Field(pattern=r"^[\w-]+$", description="what metrics and report call it")
    list: str = Field(description=".csv, .tsv, .jsonl, .json or .parquet; also .gz")
    image: str = Field("image", min_length=1, description="field of the image's path")
    captions: Annotated[tuple[tuple[str, ...], ...], BeforeValidator(_grouped)] = Field(
        (("caption",),),
        description="fields of captions, each with a text or a list of them; fields in a list "
        "inside are joined, as lines, to one caption",
    )
    images: tuple[str, ...] = Field((), description="folders of the images; empty: the list's own")
    split: SplitConfig | None = Field(None, description="None: all records are scored")
    records: str = Field(
        "", description="key of the records in a JSON object; empty: the one list of objects in it"
    )
    count: int | None = Field(None, gt=0, description="images that must be there; None: any")
    sentences: Rule | None = Field(
        None,
        description="rule that captions are split by; None: the one each model was trained with",
    )
    preprocess: ShownBy = None

    def below(self, folder: str) -> ListConfig:
        """With relative paths taken from `folder`."""
        images = tuple(_below(folder, path) for path in self.images)
        return self.model_copy(update={"list": _below(folder, self.list), "images": images})


def _below(folder: str, path: str) -> str:
    here = storage.is_local(path) and not path.startswith(("/", "file:"))
    return storage.join(folder, path) if here else path


def _benchmark_tag(benchmark: Any) -> str:
    """Which schema a benchmark follows. A tag has a space, which no key has."""
    keys = benchmark if isinstance(benchmark, Mapping) else type(benchmark).model_fields
    tags = {"set": "published set", "labelled": "labelled images", "list": "own list"}
    return next((tag for key, tag in tags.items() if key in keys), "dataset folder")


AnyBenchmarkConfig = Annotated[
    Annotated[BenchmarkConfig, Tag("dataset folder")]
    | Annotated[PublishedConfig, Tag("published set")]
    | Annotated[LabelledConfig, Tag("labelled images")]
    | Annotated[ListConfig, Tag("own list")],
    Discriminator(_benchmark_tag),
]


class ReportConfig(Config):
    """How much each benchmark shows in the report; the numbers do not depend on it."""

    images: int = Field(4, ge=0, le=64, description="images with their segments and heat maps")
    sentences: int = Field(8, gt=0, le=32, description="most heat maps of one image")
    retrievals: int = Field(
        3, ge=0, le=64, description="most confident mistakes, of captions and of images alike"
    )


class ControlsConfig(Config):
    """Which variants of the captions are scored too. Those of the order take no numbers: a model
    that reads the first sentence alone loses much when it is dropped or moved."""

    order: bool = Field(
        False, description="first sentence dropped, first sentence moved last, all shuffled"
    )
    noisy_shares: tuple[float, ...] = Field(
        (), description="shares of a caption's sentences replaced by other images' sentences"
    )
    first_sentences: tuple[int, ...] = Field((), description="sentences that captions are cut to")
    first_tokens: tuple[int, ...] = Field(
        (), description="tokens of CLIP that captions are cut to, in whole words"
    )

    @field_validator("noisy_shares")
    @classmethod
    def _shares(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        for share in shares:
            if not 0 < share <= 1:
                raise ValueError(f"a share lies above 0 and up to 1, not {share}")
        return shares

    @field_validator("first_sentences", "first_tokens")
    @classmethod
    def _lengths(cls, lengths: tuple[int, ...]) -> tuple[int, ...]:
        for length in lengths:
            if length < 1:
                raise ValueError(f"a length is at least 1, not {length}")
        return lengths


class EvaluateConfig(StageConfig):
    """Score checkpoints on retrieval and localisation, and write a report on each."""

    checkpoint: str | tuple[str, ...] = Field(
        description="checkpoint folder or file; a training run's output, for all it kept; "
        "hf:NAME, open_clip:MODEL:PRETRAINED or python:MODULE:FUNCTION; or a list of these"
    )
    output: str
    features: str | None = Field(
        None,
        description="folder that keeps features for later runs; None: 'features' beside output",
    )
    benchmarks: tuple[AnyBenchmarkConfig, ...] = Field(min_length=1)
    data: str | None = Field(
        None, description="folder that relative paths of sets, labelled images and lists start from"
    )
    allow_missing: bool = Field(
        False, description="leave out published sets that are not there, and say so"
    )
    alpha: float = Field(0.3, ge=0, le=1, description="weight of the part score when blended")
    alphas: tuple[float, ...] = Field((), description="other weights, all scored in one pass")
    top_k: int | None = Field(
        None, gt=0, description="also rerank: blend an image's top_k texts by whole score alone"
    )
    controls: ControlsConfig = ControlsConfig()
    seed: Seed = Field(0, description="of shuffling and of noise")
    batch_size: int = Field(64, gt=0, description="images encoded at a time")
    concurrency: int = Field(1, gt=0, description="actors that hold the model")
    num_gpus_per_actor: float = Field(0.0, ge=0, description="also of a task that scores")
    report: ReportConfig = ReportConfig()

    def located(self) -> tuple[AnyBenchmarkConfig, ...]:
        """The benchmarks, with their paths below `data`."""
        if self.data is None:
            return self.benchmarks
        return tuple(
            benchmark if isinstance(benchmark, BenchmarkConfig) else benchmark.below(self.data)
            for benchmark in self.benchmarks
        )

    @property
    def checkpoints(self) -> tuple[str, ...]:
        return (self.checkpoint,) if isinstance(self.checkpoint, str) else self.checkpoint

    @field_validator("checkpoint")
    @classmethod
    def _some(cls, checkpoint: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not checkpoint:
            raise ValueError("name at least one checkpoint")
        return checkpoint

    @field_validator("alphas")
    @classmethod
    def _weights(cls, alphas: tuple[float, ...]) -> tuple[float, ...]:
        for alpha in alphas:
            if not 0 <= alpha <= 1:
                raise ValueError(f"a weight lies from 0 to 1, not {alpha}")
        return alphas

    @field_validator("benchmarks")
    @classmethod
    def _unique(cls, benchmarks: tuple[AnyBenchmarkConfig, ...]) -> tuple[AnyBenchmarkConfig, ...]:
        names = [benchmark.name for benchmark in benchmarks]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two benchmarks are called '{name}'; rename one")
        return benchmarks
