"""Finds which crop makes the profiles of a picture those of another, and makes it.
looks.py asks; a profile is the mean grey level of columns or of rows, one number a bin."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from pipelines.data.images.look import BINS

MOST_CROP = 0.09  # of a side, at an edge
STEP = 0.5 / BINS  # of the first search
REFINEMENTS = 2
STIFFNESS = 20.0  # keeps plain pictures, whose crop cannot be told, where they are
NOISE = 0.7  # grey levels of detail, and of the levels themselves, that tell nothing
LEVEL_NOISE = 4.0
NEIGHBOURS = 3  # bins on either side, over which detail is levelled
TAPS = 4  # bins on either side that give a value between two


class Crop(NamedTuple):
    """Shares of a side that are gone at its start and at its end, (P,) each."""

    start: np.ndarray
    end: np.ndarray

    @classmethod
    def none(cls, count: int) -> Crop:
        return cls(np.zeros(count, np.float32), np.zeros(count, np.float32))

    @property
    def share(self) -> np.ndarray:
        return self.start + self.end


def find_crop(x: np.ndarray, y: np.ndarray) -> Crop:
    """The crop that makes profiles x most like y, both (P, K, BINS) for K profiles of one axis."""
    x, y = _searched(x), _searched(y)
    starts, ends, cuts = _grid()
    moved = (x @ cuts).reshape(*x.shape[:2], len(starts), BINS)
    cost = np.square(moved - y[:, :, None]).sum(axis=(1, 3)) + STIFFNESS * (starts + ends)
    best = cost.argmin(axis=1)
    crop = np.stack([starts[best], ends[best]], axis=1)  # (P, 2)
    for _ in range(REFINEMENTS):
        z = x @ _matrices(*crop.T)
        slope = np.stack(
            [
                (x @ _matrices(*(crop + move).T) - z).reshape(len(x), -1) / STEP
                for move in STEP * np.eye(2, dtype=np.float32)
            ],
            axis=2,
        )  # (P, K * BINS, 2)
        turned = slope.transpose(0, 2, 1)
        square = turned @ slope + np.eye(2, dtype=np.float32) * STIFFNESS * BINS
        step = np.linalg.solve(square, turned @ (y - z).reshape(len(x), -1, 1))[:, :, 0]
        crop = (crop + step.clip(-STEP, STEP)).clip(0, MOST_CROP + STEP)
    return Crop(crop[:, 0], crop[:, 1])


def cut(profiles: np.ndarray, crop: Crop) -> np.ndarray:
    """Profiles (P, K, BINS) of what a crop leaves."""
    if not crop.share.any():
        return profiles
    return profiles @ _matrices(*crop)


def detail(profiles: np.ndarray) -> np.ndarray:
    """Profiles (..., BINS) without the mean of three bins; nothing at the ends."""
    left = np.zeros_like(profiles)
    middle = profiles[..., 1:-1]
    left[..., 1:-1] = middle - (profiles[..., :-2] + middle + profiles[..., 2:]) / 3
    return left


def spread(values: np.ndarray) -> np.ndarray:
    """Means over NEIGHBOURS on either side, of zeros beyond the ends."""
    return values @ _box()


def _searched(profiles: np.ndarray) -> np.ndarray:
    """What a crop is found by: detail, levelled along the profile, and the levels themselves."""
    fine = detail(profiles)
    fine = fine / np.sqrt(spread(fine**2) + NOISE**2)
    return np.concatenate([fine, profiles.mean(axis=1, keepdims=True) / LEVEL_NOISE], axis=1)


@lru_cache(maxsize=1)
def _box() -> np.ndarray:
    away = np.abs(np.subtract.outer(np.arange(BINS), np.arange(BINS)))
    return (away <= NEIGHBOURS).astype(np.float32) / (2 * NEIGHBOURS + 1)


@lru_cache(maxsize=1)
def _grid() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Starts and ends (G,) of all crops that are tried, and their matrices side by side."""
    shares = np.arange(0, MOST_CROP + STEP / 2, STEP, dtype=np.float32)
    starts, ends = (side.ravel() for side in np.meshgrid(shares, shares))
    cuts = _matrices(starts, ends).transpose(1, 0, 2).reshape(BINS, -1)  # (BINS, G * BINS)
    return starts, ends, cuts


def _matrices(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Matrices (P, BINS, BINS) that crop a profile from the right, by Lanczos' windowed sine."""
    places = (np.arange(BINS, dtype=np.float32) + 0.5) / BINS
    places = (start[:, None] + places * (1 - start - end)[:, None]) * BINS - 0.5
    away = places[:, None] - np.arange(-TAPS, BINS + TAPS, dtype=np.float32)[:, None]
    weights = np.where(np.abs(away) < TAPS, np.sinc(away) * np.sinc(away / TAPS), 0)
    inside = weights[:, TAPS:-TAPS]  # (P, from, to); beyond the ends lies their mirror image
    inside[:, :TAPS] += weights[:, TAPS - 1 :: -1]
    inside[:, -TAPS:] += weights[:, : -TAPS - 1 : -1]
    return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)
