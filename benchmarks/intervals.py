"""How often the 95% intervals of an evaluation hold the truth: simulated images of known metrics.

    python benchmarks/intervals.py

prints two tables. In the first, the share of samples whose interval holds the metric of all images
there could be: captions found or missed, one and five of an image, the five alike; IoU of regions,
of which many are near 0; all regions' pixels, few of which decide; classes; pixels of classes. In
the second, the share of pairs of models whose interval of the difference holds the true one. The
least share over all rates stands in the table, and the rate at which it is.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import numpy as np

from caft.metrics.intervals import Estimate, class_mean, difference, interval, ratio

IMAGES = (16, 50, 500, 5000)
RATES = (0.0, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99, 1.0)
CAPTIONS, ALIKE, CLASSES = 5, 0.5, 10  # ALIKE: the less, the more the captions of an image agree
HARDEST_CLASS, EASIEST_CLASS = 0.5, 1.5  # their rates over the mean

Draw = Callable[[np.random.Generator, float, int], Estimate]


def captions(rng: np.random.Generator, rate: float, images: int) -> Estimate:
    return ratio(rng.binomial(1, rate, images).astype(float), np.ones(images))


def five_captions(rng: np.random.Generator, rate: float, images: int) -> Estimate:
    each = rng.beta(rate * ALIKE + 1e-12, (1 - rate) * ALIKE + 1e-12, images)
    return ratio(rng.binomial(CAPTIONS, each).astype(float), np.full(images, float(CAPTIONS)))


def ious(rng: np.random.Generator, rate: float, images: int) -> Estimate:
    return ratio(_overlap(rng, rate, images), np.ones(images))


def pixels(rng: np.random.Generator, rate: float, images: int) -> Estimate:
    union = rng.lognormal(0, 1, images)
    return ratio(union * _overlap(rng, rate, images), union)


def classes(rng: np.random.Generator, rate: float, images: int) -> Estimate:
    label = rng.integers(CLASSES, size=images)
    right = rng.binomial(1, _of_class(rate)[label]).astype(float)
    return class_mean(np.arange(images), label, right, np.ones(images), images)


def class_pixels(rng: np.random.Generator, rate: float, images: int) -> Estimate:
    image = np.repeat(np.arange(images), 2)  # two classes lie in each
    label = (rng.integers(CLASSES, size=(images, 1)) + np.array([0, 1])).ravel() % CLASSES
    union = rng.lognormal(0, 0.7, 2 * images)
    hits = union * rng.beta(*_shape(_of_class(rate)[label], 2.0))
    return class_mean(image, label, hits, union, images)


def _overlap(rng: np.random.Generator, rate: float, images: int) -> np.ndarray:
    return rng.beta(*_shape(rate, 1.0), images)


def _shape(rate: float | np.ndarray, sharpness: float) -> tuple:
    return rate * sharpness + 1e-12, (1 - rate) * sharpness + 1e-12


def _of_class(rate: float) -> np.ndarray:
    """Rates of classes, which differ, of this mean."""
    spread = min(rate, 1 - rate) / max(rate, 1e-12)
    return rate * (1 + spread * np.linspace(HARDEST_CLASS - 1, EASIEST_CLASS - 1, CLASSES))


METRICS: dict[str, Draw] = {
    "recall, one caption an image; P@0.5; top 1": captions,
    "recall, five captions an image": five_captions,
    "mIoU, pointing": ious,
    "oIoU, pixel accuracy": pixels,
    "mean per class": classes,
    "semantic mIoU": class_pixels,
}


def coverage(draw: Draw, rate: float, images: int, samples: int) -> tuple[float, float]:
    """Share of intervals that hold the rate, and their median width."""
    rng = np.random.default_rng([images, int(1000 * rate)])
    found = [interval(draw(rng, rate, images)) for _ in range(samples)]
    held = np.mean([low <= rate <= high for low, high in found])
    return float(held), float(np.median([high - low for low, high in found]))


def pairs(
    rng: np.random.Generator, rate: float, more: float, images: int, graded: bool
) -> tuple[Estimate, Estimate]:
    """Two models on the same images, alike in most of them; `more` is the true difference."""
    ones, alike = np.ones(images), rng.random(images) < 0.7
    chance, other = rng.random(images), rng.random(images)
    if graded:
        first = 0.3 + 0.4 * _overlap(rng, rate, images)
        second = first + more + 0.05 * rng.standard_normal(images)
        return ratio(first, ones), ratio(second, ones)
    # The share `more / 0.3` of where they may differ is the second's to gain.
    gain = more / 0.3
    second = np.where(alike, chance < rate, other < rate + gain * ~alike)
    return ratio((chance < rate).astype(float), ones), ratio(second.astype(float), ones)


def difference_coverage(
    rate: float, more: float, images: int, samples: int, graded: bool
) -> tuple[float, float]:
    """Share of intervals that hold `more`, and share of p below 0.05."""
    rng = np.random.default_rng([images, int(1000 * rate), int(1000 * more), graded])
    found = [difference(*pairs(rng, rate, more, images, graded)) for _ in range(samples)]
    held = np.mean([d.low <= more <= d.high for d in found])
    return float(held), float(np.mean([d.p < 0.05 for d in found]))


def rows(samples: int) -> Iterator[str]:
    """The lines of both tables."""
    yield "| metric | images | least coverage | at a rate of | median width there |"
    yield "|---|---|---|---|---|"
    for name, draw in METRICS.items():
        for images in IMAGES:
            found = {rate: coverage(draw, rate, images, samples) for rate in RATES}
            rate = min(found, key=lambda key: found[key][0])
            held, width = found[rate]
            yield f"| {name} | {images:,} | {100 * held:.1f}% | {rate:g} | {100 * width:.1f} |"
    yield ""
    yield "| difference of | images | least coverage | at a rate of | false alarms, at most |"
    yield "|---|---|---|---|---|"
    for graded, name in ((False, "recalls"), (True, "mIoU")):
        for images in IMAGES:
            asked = [(rate, more) for rate in (0.0, 0.05, 0.5, 0.9) for more in (0.0, 0.02)]
            held = {key: difference_coverage(*key, images, samples, graded) for key in asked}
            least = min(held, key=lambda key: held[key][0])
            alarms = max(share for (_, more), (_, share) in held.items() if more == 0)
            yield (
                f"| {name} | {images:,} | {100 * held[least][0]:.1f}% | {least[0]:g} | "
                f"{100 * alarms:.1f}% |"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=1000, help="of each metric and rate")
    for row in rows(parser.parse_args().samples):
        print(row, flush=True)
