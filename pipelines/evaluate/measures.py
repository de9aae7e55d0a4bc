"""How well heat maps cover the pixels of sentences and of classes, and how pure segments are.
Runs on the embedding actors, on features that are there anyway; the report draws the same maps."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from caft.config import PictureRule
from caft.errors import DataError
from caft.heat_maps import UNSEEN, encode_sentences, heat_maps, labels_on, segment_hierarchy
from caft.metrics import (
    achievable_segmentation_accuracy,
    binarise,
    centre_box,
    mask_overlap,
    peak_overlap,
)
from caft.metrics.classification import class_features
from caft.model import CAFT, ImageFeatures
from caft.preprocessing import to_picture
from pipelines.evaluate.benchmark import Benchmark, Region, Regions
from pipelines.evaluate.items import PIXELS, REGIONS, pixel_estimates, region_estimates

OVERLAP = ("intersection", "union")
REGION_COUNTS = (*OVERLAP, *(f"centre_box_{name}" for name in OVERLAP), "peak_inside", "peak")


@dataclass(frozen=True)
class RegionMeasure:
    """Overlap of sentences' heat maps with the masks of what they speak of."""

    regions: Regions
    columns = 6
    items = REGIONS

    def rows(
        self,
        model: CAFT,
        features: ImageFeatures,
        url: str,
        label_map: bytes | None,
        rule: PictureRule,
    ) -> np.ndarray:
        return region_overlaps(model, features, self.regions.get(url, ()), rule)

    def table(self, rows: np.ndarray, benchmark: Benchmark) -> pa.Table:
        """A row for each region: `image` (its place), `url`, `text`, `iou`, and the counts."""
        of_url = benchmark.regions
        regions = [(n, url, r) for n, url in enumerate(benchmark.urls) for r in of_url.get(url, ())]
        counts = dict(zip(REGION_COUNTS, rows.T, strict=True))
        return pa.table(
            {
                "image": pa.array([n for n, _, _ in regions], pa.int32()),
                "url": [url for _, url, _ in regions],
                "text": [region.text for _, _, region in regions],
                "iou": counts["intersection"] / np.maximum(counts["union"], 1),
                **counts,
            }
        )

    def scores(self, rows: np.ndarray) -> dict[str, float]:
        """`miou`, `oiou`, `precision_50` and `pointing` of R regions, and what the centre box has
        of the first three."""
        counts = dict(zip(REGION_COUNTS, rows.T, strict=True))
        found = region_estimates({"image": np.arange(len(rows)), **counts}, len(rows))
        return {"regions": float(len(rows))} | {name: e.value for name, e in found.items()}


def region_overlaps(
    model: CAFT, features: ImageFeatures, regions: Sequence[Region], rule: PictureRule
) -> np.ndarray:
    """Pixels shared with each region's mask and pixels in either, of the sentence's heat map and
    of the centre box; then the map's highest pixels inside the mask and all of them: int64 (R, 6).
    `features` are of one image."""
    if not regions:
        return np.zeros((0, RegionMeasure.columns), dtype=np.int64)
    heats = heat_maps(model, features, encode_sentences(model, [r.text for r in regions]))
    rows = []
    for heat, region in zip(heats, regions, strict=True):
        mask = region.mask
        fitted = _over(mask, heat, rule)
        box = mask_overlap(centre_box(*mask.shape), mask)
        rows.append([*mask_overlap(binarise(fitted), mask), *box, *peak_overlap(fitted, mask)])
    return np.asarray(rows, dtype=np.int64)


def heat_overlap(
    heat: np.ndarray, mask: np.ndarray, rule: PictureRule
) -> tuple[np.ndarray, np.ndarray]:
    """Intersection and union, in the mask's pixels, of a heat map of any size with a mask over the
    whole picture, which the model was shown by `rule`."""
    return mask_overlap(binarise(_over(mask, heat, rule)), mask)


def _over(mask: np.ndarray, heat: np.ndarray, rule: PictureRule) -> np.ndarray:
    """A heat map (h, w) at the size of a mask (H, W); least where the model saw nothing, so that
    it points at nothing there."""
    return to_picture(heat, mask.shape[0], mask.shape[1], rule, heat.min())


def one_image(features: ImageFeatures, n: int) -> ImageFeatures:
    """The features of the n-th image alone, still with a batch dimension."""
    return replace(
        features,
        whole=features.whole[n : n + 1],
        fine=features.fine[n : n + 1],
        fine_cls=features.fine_cls[n : n + 1],
        coarse=features.coarse[n : n + 1],
        assignments=[assignment[n : n + 1] for assignment in features.assignments],
        superpixels=features.superpixels[n : n + 1],
    )


class SegmentationMeasure:
    """Counts of C classes' pixels, and of the pixels that each level of segments gets right.

    A pixel is given the class whose texts' heat map is highest there. Label maps hold 1 .. C for
    the classes; pixels of any other value are not counted.
    """

    columns = 3  # item, hits, total; an item is a class, C for all pixels, -n for n segments
    items = PIXELS

    def __init__(self, prompts: Sequence[Sequence[str]]) -> None:
        """Args:
        prompts: texts of each class, as many for each.
        """
        self._prompts = prompts
        self._features: Tensor | None = None

    def rows(
        self,
        model: CAFT,
        features: ImageFeatures,
        url: str,
        label_map: bytes | None,
        rule: PictureRule,
    ) -> np.ndarray:
        truth = read_label_map(label_map or b"", url).astype(np.int32)
        count = len(self._prompts)
        counted = (truth >= 1) & (truth <= count)
        if not counted.any():
            return np.zeros((0, self.columns), dtype=np.int64)
        own = truth[counted] - 1
        heats = heat_maps(model, features, self._class_features(model))
        given = labels_on(truth, heats.argmax(axis=0).astype(np.int32), rule)[counted]
        hits, either = class_overlaps(own, given, count)
        rows = [(int(item), hits[item], either[item]) for item in np.flatnonzero(either)]
        rows.append((count, hits.sum(), len(own)))
        levels = segment_hierarchy(features)
        for labels, segments in zip(levels, model.config.image.segments, strict=True):
            fitted = labels_on(truth, labels[0].int().cpu().numpy(), rule)[counted]
            seen = fitted != UNSEEN  # of the others no segment gets a pixel right
            share = achievable_segmentation_accuracy(fitted[seen], own[seen]) if seen.any() else 0.0
            rows.append((-segments, round(share * int(seen.sum())), len(own)))
        return np.asarray(rows, dtype=np.int64)

    def table(self, rows: np.ndarray, benchmark: Benchmark) -> pa.Table:
        """A row for each class of each image: `image` (its place among those of which pixels are
        counted), `item`, `hits` and `pixels`; items are those of `rows`."""
        columns = self._columns(rows)
        return pa.table(columns | {"image": pa.array(columns["image"], pa.int32())})

    def _columns(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        item, hits, pixels = rows.T
        # An image has rows of classes, one of all pixels, and rows of its levels, in this order.
        every = item == len(self._prompts)
        image = np.cumsum(every) - every - (item < 0)
        return {"image": image, "item": item, "hits": hits, "pixels": pixels}

    def scores(self, rows: np.ndarray) -> dict[str, float]:
        """`semantic_miou`, the mean over classes of all images' intersections by unions;
        `pixel_accuracy`; and of each level `achievable_64`, ..., the mean over images of its
        achievable segmentation accuracy."""
        items = np.unique(rows[:, 0])
        seen = float(np.count_nonzero((items >= 0) & (items < len(self._prompts))))
        found = pixel_estimates(self._columns(rows))
        return {"classes_seen": seen} | {name: e.value for name, e in found.items()}

    def _class_features(self, model: CAFT) -> Tensor:
        """(C, D), made once on each actor."""
        if self._features is None:
            texts = [text for prompts in self._prompts for text in prompts]
            self._features = class_features(encode_sentences(model, texts), len(self._prompts))
        return self._features


def class_overlaps(own: np.ndarray, given: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of intersection and union of each of `count` classes, (count,) each, of n pixels' own
    and given classes, -1 for no class."""
    hits = np.bincount(own[own == given], minlength=count)
    return hits, np.bincount(own, minlength=count) + np.bincount(
        given[given >= 0], minlength=count
    ) - hits


def read_label_map(data: bytes, name: str) -> np.ndarray:
    """The values (H, W) of an encoded label map, grey or with a palette.

    Raises:
        DataError: no image of one value per pixel; `name` says whose.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            values = np.array(image)
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{name}: its label map cannot be decoded ({error})") from None
    if values.ndim != 2:
        raise DataError(
            f"{name}: its label map has colours; the published one has one value a pixel"
        )
    return values
