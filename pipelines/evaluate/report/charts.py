"""Line charts as plain geometry, which templates/macros.html.j2 writes as SVG.
Under curves.py; knows nothing of evaluations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 360, 220  # of the drawing, in its own units; pages scale it
LEFT, RIGHT, TOP, BOTTOM = 38, 12, 12, 26  # margins
TICKS = 5  # about as many on an axis
NARROW = 25  # points; a chart of fewer says so, as small differences look large in it
PADDING = 0.04  # of the span of values, left free above and below


@dataclass(frozen=True)
class Line:
    """A named series of points (x, y) in the order in which they are joined. A point whose y is
    no number is left out. `notes` are shown when a point is pointed at."""

    name: str
    points: tuple[tuple[float, float], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mark:
    x: float
    y: float
    note: str


@dataclass(frozen=True)
class DrawnLine:
    name: str
    path: str  # of an SVG polyline
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Chart:
    """A chart in drawing units, ready to be written."""

    title: str
    x_title: str
    lines: tuple[DrawnLine, ...]
    x_ticks: tuple[tuple[float, str], ...]  # place and label
    y_ticks: tuple[tuple[float, str], ...]
    narrow: str  # ends of the vertical axis, where it shows a small part of 0 to 100; else empty


def line_chart(
    title: str, x_title: str, lines: Sequence[Line], categories: Sequence[str] = ()
) -> Chart:
    """A chart of per cent over anything.

    Args:
        lines: y in per cent.
        categories: labels of x = 0, 1, ...; without them x has a scale of numbers.
    """
    points = [point for line in lines for point in line.points if math.isfinite(point[1])]
    xs, ys = [x for x, _ in points] or [0.0], [y for _, y in points] or [0.0]
    if categories:
        x_low, x_high = -0.5, len(categories) - 0.5
        x_ticks = [(float(n), label) for n, label in enumerate(categories)]
    else:
        x_low, x_high = _span(xs)
        x_ticks = [(x, short_number(x)) for x in ticks(x_low, x_high)]
    y_low, y_high = _span(ys)
    y_low, y_high = max(0.0, y_low), min(100.0, y_high)

    def place_x(x: float) -> float:
        return round(LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT), 1)

    def place_y(y: float) -> float:
        return round(TOP + (y_high - y) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM), 1)

    drawn = []
    for line in lines:
        notes = line.notes or ("",) * len(line.points)
        marks = tuple(
            Mark(place_x(x), place_y(y), f"{line.name}: {y:.1f}%{', ' + note if note else ''}")
            for (x, y), note in zip(line.points, notes, strict=True)
            if math.isfinite(y)
        )
        path = " ".join(f"{mark.x},{mark.y}" for mark in marks)
        drawn.append(DrawnLine(line.name, path, marks))
    return Chart(
        title,
        x_title,
        tuple(drawn),
        tuple((place_x(x), label) for x, label in x_ticks),
        tuple((place_y(y), short_number(y)) for y in ticks(y_low, y_high)),
        f"{y_low:.1f} to {y_high:.1f}%" if y_high - y_low < NARROW else "",
    )


def ticks(low: float, high: float) -> list[float]:
    """Round numbers within [low, high], about TICKS of them."""
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= 0.999 * rough)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def short_number(value: float) -> str:
    """12,500 as 12.5k, and so on; small numbers as they are."""
    for power, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= power:
            return f"{value / power:g}{letter}"
    return f"{value:g}"


def _span(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis, with some room; of a single value too."""
    low, high = min(values), max(values)
    room = PADDING * (high - low) or max(1.0, abs(high) * PADDING)
    return low - room, high + room
