"""What a benchmark is, however its images, captions and masks came to be read.
Opened by benchmarks.py from datasets and published sets; everything else of the stage scores it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from caft.captions import Rule, caption_sentences
from caft.config import PictureRule
from caft.masks import decode_rle
from caft.model import CAFT, ImageFeatures
from pipelines.data.dataset import Dataset, use_of
from pipelines.evaluation_input import Piece
from pipelines.tracking import DatasetUse


@dataclass(frozen=True)
class Region:
    """A sentence and the pixels it speaks of, as COCO run lengths."""

    text: str
    rle: dict[str, Any]

    @property
    def mask(self) -> np.ndarray:
        """(H, W) bool, in pixels of the image that the mask was drawn on."""
        return decode_rle(self.rle)


Caption = str | tuple[str, ...]  # a text as it was written, or the sentences that a dataset holds
Regions = Mapping[str, tuple[Region, ...]]  # by image URL


class Rows(Protocol):
    """Reads pieces, on whatever machine they are encoded."""

    @property
    def place(self) -> str:
        """What reports say of where the images come from."""
        ...

    def read(self, piece: Piece) -> list[dict[str, Any]]:
        """Rows with `url` and `image` (encoded bytes); `superpixels` and `label_map` where the
        benchmark has them."""
        ...


class Measure(Protocol):
    """Something measured on the features of each image while they are there."""

    columns: int
    items: str  # what its table is called, see items.py

    def rows(
        self,
        model: CAFT,
        features: ImageFeatures,
        url: str,
        label_map: bytes | None,
        rule: PictureRule,
    ) -> np.ndarray:
        """Counts int64 (n, columns) of the one image in `features`, which the model was shown by
        `rule`."""
        ...

    def table(self, rows: np.ndarray, benchmark: Benchmark) -> pa.Table:
        """The counts of all the benchmark's images, with what they are of."""
        ...

    def scores(self, rows: np.ndarray) -> dict[str, float]:
        """Metrics of all images' counts."""
        ...


@dataclass(frozen=True)
class Classes:
    """What images are classified by: each image's class, and the texts that describe a class."""

    labels: tuple[int, ...]  # (N,)
    prompts: tuple[tuple[str, ...], ...]  # (C, P)


def class_prompts(names: Sequence[str], templates: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The texts of C classes, P of each: every template with the class's name in it."""
    return tuple(tuple(text.replace("{}", name) for text in templates) for name in names)


@dataclass(frozen=True)
class Benchmark:
    """A benchmark that can be scored: N images and T captions, both in the source's order."""

    name: str
    split: str
    dataset: Dataset | None  # of the data stage; None for images as they were published
    rows: Rows
    pieces: tuple[Piece, ...]
    urls: tuple[str, ...]
    captions: tuple[Caption, ...]
    text_to_image: tuple[int, ...]  # position of the image that each caption belongs to
    regions: Regions
    fingerprint: str  # of all that is read
    measure: Measure | None = None
    preprocess: PictureRule | None = None  # by which every model is shown the images; None: its own
    classes: Classes | None = None
    rule: Rule | None = None  # captions are split by it; None: as each model was trained

    @property
    def use(self) -> DatasetUse:
        """The benchmark as MLflow shows what a run has read."""
        if self.dataset is not None:
            return use_of(self.dataset, "evaluation")
        profile = {
            "num_rows": len(self.urls),
            "images": len(self.urls),
            "captions": len(self.captions),
        }
        return DatasetUse(self.name, self.fingerprint, self.rows.place, profile, "evaluation")

    @cached_property
    def sentences(self) -> tuple[tuple[str, ...], ...]:
        """Of each caption, by the same rule for every model: what controls change, and lengths."""
        return tuple(tuple(caption_sentences(c, self.rule or "default")) for c in self.captions)
