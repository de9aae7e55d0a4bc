"""How well heat maps of sentences cover the pixels that the sentences speak of.
Runs on the embedding actors, on features that are there anyway; the report draws the same maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from caft.config import PictureRule
from caft.heat_maps import encode_sentences, heat_maps
from caft.metrics import binarise, centre_box, mask_overlap, overlap_scores, peak_overlap
from caft.model import CAFT, ImageFeatures
from caft.preprocessing import to_picture
from pipelines.evaluate.benchmark import Region, Regions


@dataclass(frozen=True)
class RegionMeasure:
    """Overlap of sentences' heat maps with the masks of what they speak of."""

    regions: Regions
    columns = 6

    def rows(
        self,
        model: CAFT,
        features: ImageFeatures,
        url: str,
        label_map: bytes | None,
        rule: PictureRule,
    ) -> np.ndarray:
        return region_overlaps(model, features, self.regions.get(url, ()), rule)

    def scores(self, rows: np.ndarray) -> dict[str, float]:
        """`miou`, `oiou`, `precision_50` and `pointing` of R regions, and what the centre box has
        of the first three."""
        shared, either, box_shared, box_either, peak_inside, peak = rows.T
        box = overlap_scores(box_shared, box_either)
        return {
            "regions": float(len(rows)),
            **overlap_scores(shared, either),
            "pointing": float(np.mean(peak_inside / np.maximum(peak, 1))),
            **{f"centre_box_{key}": value for key, value in box.items()},
        }


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
