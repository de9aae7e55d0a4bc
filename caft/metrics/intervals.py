"""How far a metric may be from that of other images like these: 95% intervals and differences.
An image counts with all that belongs to it, so a metric is known by what each image adds to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from torch import Tensor

from caft.metrics.retrieval import RECALL_AT

TAIL = 0.025  # beyond each end of a 95% interval
NORMAL = float(stats.norm.ppf(1 - TAIL))
Interval = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Estimate:
    """A metric from 0 to 1 over N images.

    Attributes:
        value: the metric.
        influence: (N,) what the metric gains, to first order, where an image is counted twice.
        images: how many images of equal weight tell as much as these; N if all weigh the same.
    """

    value: float
    influence: np.ndarray
    images: float


@dataclass(frozen=True)
class Difference:
    """By how much one metric is greater than another on the same images, its 95% interval, and the
    probability of a difference as large (of either sign) if there were none."""

    value: float
    low: float
    high: float
    p: float


def ratio(hits: np.ndarray, totals: np.ndarray) -> Estimate:
    """All hits over all totals, of N images' hits (N,) and totals (N,), each at most its total."""
    total = totals.sum() or 1.0  # nothing that could be hit: no hits
    value = float(hits.sum() / total)
    return Estimate(value, (hits - value * totals) / total, _equal_weights(totals))


def class_mean(
    image: np.ndarray, group: np.ndarray, hits: np.ndarray, totals: np.ndarray, images: int
) -> Estimate:
    """The mean over classes of each class's hits over its totals, over the classes that occur.

    Args:
        image, group: (R,) image from 0 to `images` - 1 and class of each row.
        hits, totals: (R,) of each row.
    """
    _, place = np.unique(group, return_inverse=True)
    hit, total = np.bincount(place, hits), np.bincount(place, totals)
    value = float(np.mean(hit / total))
    # What other images say of the class: an image that is alone in its class would else be right
    # by definition, and add nothing to the spread.
    rest = total[place] - totals
    others = np.where(rest > 0, (hit[place] - hits) / np.maximum(rest, 1), value)
    weight = 1 / (len(total) * total[place])
    influence = np.bincount(image, weight * (hits - others * totals), minlength=images)
    return Estimate(
        value, influence, _equal_weights(np.bincount(image, weight * totals, minlength=images))
    )


def interval(estimate: Estimate) -> Interval:
    """The 95% interval of a metric: that of Korn and Graubard (1998).

    Clopper and Pearson's interval of so many draws as have the metric's variance, fewer where few
    images tell the variance; at 0 and 1, where nothing varies, as many as there are images. One
    further image of hits and misses is added to the variance, for what few images did not show.
    """
    value, size = estimate.value, estimate.images
    if size == 0:
        return 0.0, 1.0
    if 0 < value < 1:
        spread = _variance(estimate.influence, size) + value * (1 - value) / size**2
        likely = value * (1 - value) / spread * (NORMAL / _student(size)) ** 2
        # Near 0 and 1 what is rare decides, which few images do not show: as many as there are.
        size = min(likely, size * max(1.0, 4 * value * (1 - value) * size))
    hits = value * size
    low = stats.beta.ppf(TAIL, hits, size - hits + 1) if value > 0 else 0.0
    high = stats.beta.ppf(1 - TAIL, hits + 1, size - hits) if value < 1 else 1.0
    return min(float(low), value), max(float(high), value)


def difference(first: Estimate, second: Estimate) -> Difference:
    """How much greater `second` is than `first`, both of the same images in the same order.

    An adjusted Wald interval (Bonett and Price 2012): two images are added, one for and one
    against, by as much as the image that differs most, or wholly where none differs.
    """
    change = second.influence - first.influence
    images = min(first.images, second.images)
    # An influence is an image's share of the difference; a whole hit is one of `images`.
    most = np.abs(change).max(initial=0.0) or 1 / images
    shrunk = images / (images + 2)
    spread = shrunk * float(np.sqrt(_variance(change, images) + 2 * most**2))
    value = second.value - first.value
    middle, width = shrunk * value, _student(images) * spread
    p = 2 * stats.t.sf(abs(middle) / spread, _freedom(images))
    low, high = max(-1.0, middle - width), min(1.0, middle + width)
    return Difference(value, min(low, value), max(high, value), float(p))


def holm(p: Sequence[float]) -> list[float]:
    """p-values of several questions, each as large as it must be for the least of all to be a
    false alarm as often as it says (Holm 1979); in the order given."""
    order = np.argsort(p)
    steps = np.asarray(p, dtype=float)[order] * np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(1, np.maximum.accumulate(steps))
    return [float(value) for value in corrected]


def recall_estimates(
    text_rank: Tensor, image_rank: Tensor, text_to_image: Tensor
) -> dict[str, Estimate]:
    """R@1, R@5 and R@10 both ways: `t2i_r1`, ...; the arguments are those of `recall_intervals`.

    What stands in the gallery stays as it is: ranks are those measured.
    """
    images = len(image_rank)
    owner = text_to_image.numpy()
    texts = np.bincount(owner, minlength=images).astype(np.float64)
    asked = (image_rank > 0).double().numpy()
    estimates = {}
    for k in RECALL_AT:
        found = (text_rank <= k).double().numpy()
        estimates[f"t2i_r{k}"] = ratio(np.bincount(owner, found, minlength=images), texts)
        estimates[f"i2t_r{k}"] = ratio(asked * (image_rank <= k).double().numpy(), asked)
    return estimates


def recall_intervals(
    text_rank: Tensor, image_rank: Tensor, text_to_image: Tensor
) -> dict[str, Interval]:
    """95% intervals of R@1, R@5 and R@10 both ways, see `interval`.

    Args:
        text_rank: (T,) rank of each text's image.
        image_rank: (N,) rank of each image's best text; 0 of an image without a text.
        text_to_image: (T,) the image each text belongs to. Texts of one image are not independent:
            an image is drawn with all of them.

    Returns:
        `t2i_r1`, ... -> (low, high), as fractions.
    """
    estimates = recall_estimates(text_rank, image_rank, text_to_image)
    return {name: interval(estimate) for name, estimate in estimates.items()}


def _equal_weights(weights: np.ndarray) -> float:
    """How many images of equal weight are worth as much as those of `weights` (Kish 1965)."""
    return float(weights.sum() ** 2 / ((weights**2).sum() or 1.0))


def _freedom(images: float) -> float:
    """Degrees of freedom of a variance that so many images tell."""
    return max(images - 1, 0.01)


def _variance(influence: np.ndarray, images: float) -> float:
    return float((influence**2).sum()) * images / _freedom(images)


def _student(images: float) -> float:
    return float(stats.t.ppf(1 - TAIL, _freedom(images)))
