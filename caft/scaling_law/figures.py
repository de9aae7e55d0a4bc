"""The figures of a study: runs, laws with their intervals, predictions, residuals.
Between the study and its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from caft.scaling_law.fitted import Band, Fit
from caft.scaling_law.study import IN_COMPUTE, IN_SIZE, FamilyStudy, Study

Array = NDArray[np.float64]

WIDTH, LEFT, RIGHT = 760.0, 56.0, 16.0
TOP, MAIN, GAP, RESIDUALS, BOTTOM = 34.0, 300.0, 34.0, 90.0, 44.0
HEIGHT = TOP + MAIN + GAP + RESIDUALS + BOTTOM
LEGEND_LINE, LETTER = 18.0, 7.5
MARGIN = 1.08  # of the ranges, as a factor
CURVE_POINTS = 80
MOST_SIZES = 24  # of a figure; a legend of more cannot be read
COLOURS = ("#2f6fb5", "#c2572b", "#2c8a5b", "#8a4fb0", "#a67c1a", "#4a8f9c", "#b0437a", "#6b7280")
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, sans-serif'
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MANTISSAS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7))
FEWEST_TICKS, MOST_TICKS = 4, 9


@dataclass(frozen=True)
class Series:
    """A curve and its points; series of one label have one colour."""

    label: str
    x: Array  # (n,) of the points fitted
    error: Array  # (n,)
    residuals: Array  # (n,)
    curve_x: Array  # (m,)
    curve: Band  # (m,)
    others: tuple[Array, Array] | None = None  # x and error of runs that were not fitted
    predicted: tuple[Array, Band] | None = None  # x and what is expected of a run there


def compute_figure(study: Study) -> str | None:
    """Error against compute on log axes, all families; None where there is no law in compute."""
    series = [_in_compute(f, study) for f in study.families if IN_COMPUTE in f.laws]
    return _figure(study.target, "compute", series) if series else None


def size_figure(study: Study, family: FamilyStudy) -> str | None:
    """Error against samples on log axes, one curve a size, of many sizes some; None where there is
    no such law."""
    if IN_SIZE not in family.laws:
        return None
    series = _in_size(family.laws[IN_SIZE].fit)
    return _figure(study.target, "samples seen", series)


def _in_compute(family: FamilyStudy, study: Study) -> Series:
    fit = family.laws[IN_COMPUTE].fit
    x = fit.inputs["compute"]
    budgets = np.array(study.budgets)
    ends = np.array([x.min(), x.max(), *budgets])
    curve_x = np.geomspace(ends.min(), ends.max(), CURVE_POINTS)
    left = ~np.isin(family.runs.inputs["compute"], x) | ~np.isin(family.runs.error, fit.error)
    return Series(
        family.runs.family,
        x,
        fit.error,
        fit.residuals,
        curve_x,
        _drawn(fit.law_band({"compute": curve_x})),
        (family.runs.inputs["compute"][left], family.runs.error[left]),
        (budgets, _drawn(fit.predict({"compute": budgets}))) if len(budgets) else None,
    )


def _in_size(fit: Fit) -> list[Series]:
    keys = [key for key in ("parameters", "unique_samples") if key in fit.inputs]
    table = np.stack([fit.inputs[key] for key in keys], axis=1)
    sizes = np.unique(table, axis=0)
    sizes = sizes[np.linspace(0, len(sizes) - 1, min(len(sizes), MOST_SIZES)).astype(int)]
    samples, series = fit.inputs["samples"], []
    for values in sizes:
        mine = (table == values).all(axis=1)
        x = samples[mine]
        ends = x if np.ptp(x) else samples  # of a size with one run, over all that were measured
        curve_x = np.geomspace(ends.min(), ends.max(), CURVE_POINTS)
        fixed = {key: np.full(CURVE_POINTS, v) for key, v in zip(keys, values, strict=True)}
        label = f"{number(values[0])} parameters"
        band = _drawn(fit.law_band({**fixed, "samples": curve_x}))
        series.append(Series(label, x, fit.error[mine], fit.residuals[mine], curve_x, band))
    return series


def _figure(target: str, x_label: str, series: Sequence[Series]) -> str:
    labels = list(dict.fromkeys(one.label for one in series))
    column = LETTER * (4 + max(map(len, labels)))
    columns = max(1, int((WIDTH - LEFT) // column))
    legend = LEGEND_LINE * -(-len(labels) // columns)
    figure = new_figure(WIDTH, HEIGHT + legend, f"{target} against {x_label}: runs and law")
    x = np.concatenate([np.concatenate([s.x, s.curve_x, *_first(s.others)]) for s in series])
    y = np.concatenate([np.concatenate([s.error, s.curve.value, *_heights(s)]) for s in series])
    left = 100 * np.expm1(np.concatenate([s.residuals for s in series]))
    most = max(1.2 * float(np.abs(left).max()), 0.1)
    x_range = float(x.min() / MARGIN), float(x.max() * MARGIN)
    inner = WIDTH - LEFT - RIGHT
    main = Panel(
        figure,
        LEFT,
        TOP + legend,
        inner,
        MAIN,
        x_range,
        (float(y.min() / MARGIN), float(y.max() * MARGIN)),
    )
    below = Panel(
        figure, LEFT, TOP + legend + MAIN + GAP, inner, RESIDUALS, x_range, (-most, most), False
    )
    main.axes(None, target)
    below.axes(x_label, "measured over law", " %")
    for one in series:
        _draw(main, below, one, colour(labels.index(one.label)))
    for place, label in enumerate(labels):
        across = LEFT + place % columns * column
        down = 16 + place // columns * LEGEND_LINE
        text(figure, across, down, "●", fill=colour(place))
        text(figure, across + 14, down, label)
    return render(figure)


def _draw(main: Panel, below: Panel, one: Series, shade: str) -> None:
    main.band(one.curve_x, one.curve.low, one.curve.high, shade)
    main.curve(one.curve_x, one.curve.value, shade)
    if one.others:
        main.points(*one.others, fill=shade, radius=2.5, opacity=0.35)
    main.points(one.x, one.error, shade)
    if one.predicted:
        x, band = one.predicted
        for place, budget in enumerate(x):
            main.bar(budget, band.value[place], band.low[place], band.high[place], shade)
    below.points(one.x, 100 * np.expm1(one.residuals), shade, radius=3)


def _drawn(band: Band) -> Band:
    """The band as it can be drawn: where there is no interval, the value alone."""
    known = np.isfinite(band.low) & np.isfinite(band.high)
    low, high = (np.where(known, end, band.value) for end in (band.low, band.high))
    return Band(band.value, low, high)


def _first(pair: tuple[Array, Array] | None) -> list[Array]:
    return [pair[0]] if pair else []


def _heights(one: Series) -> list[Array]:
    found = [one.others[1]] if one.others else []
    if one.predicted:
        band = one.predicted[1]
        found += [band.low, np.minimum(band.high, 2 * band.value)]
    return found


def colour(number: int) -> str:
    """The colour of the number-th series."""
    if number < len(COLOURS):
        return COLOURS[number]
    # Steps of the golden angle: no two hues of any number of series are the same.
    return f"hsl({(number - len(COLOURS)) * 137.508 % 360:.0f} 55% 45%)"


def new_figure(width: float, height: float, title: str) -> ElementTree.Element:
    """An empty figure; `title` is what a screen reader says of it."""
    attributes = {
        "xmlns": "http://www.w3.org/2000/svg",
        "viewBox": f"0 0 {width:g} {height:g}",
        "role": "img",
        "font-family": FONT,
        "font-size": "12",
        "fill": "currentColor",
    }
    figure = ElementTree.Element("svg", attributes)
    ElementTree.SubElement(figure, "title").text = title
    return figure


def text(
    parent: ElementTree.Element, x: float, y: float, content: str, **attributes: str
) -> ElementTree.Element:
    """Text at a place, in px; `text_anchor="end"` and the like are attributes."""
    names = {name.replace("_", "-"): value for name, value in attributes.items()}
    element = ElementTree.SubElement(parent, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", **names})
    element.text = content
    return element


def render(figure: ElementTree.Element) -> str:
    return ElementTree.tostring(figure, encoding="unicode")


@dataclass(frozen=True)
class Panel:
    """A frame in a figure: places and sizes in px, ranges in the data's units."""

    figure: ElementTree.Element
    left: float
    top: float
    width: float
    height: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    y_log: bool = True

    def x(self, values: Array) -> Array:
        low, high = np.log(self.x_range)
        return self.left + self.width * (np.log(values) - low) / (high - low)

    def y(self, values: Array) -> Array:
        low, high = np.log(self.y_range) if self.y_log else np.array(self.y_range)
        places = np.log(np.maximum(values, 1e-300)) if self.y_log else values
        share = np.clip((places - low) / (high - low), 0, 1)  # what leaves the frame, at its edge
        return self.top + self.height * (1 - share)

    def axes(self, x_label: str | None, y_label: str, y_unit: str = "") -> None:
        """Frame, ticks and labels; without `x_label` the ticks of x stay unnamed."""
        bottom = self.top + self.height
        for tick in log_ticks(*self.x_range):
            place = float(self.x(np.array(tick)))
            self._line(place, self.top, place, bottom)
            if x_label:
                text(self.figure, place, bottom + 16, number(tick), text_anchor="middle")
        ticks = log_ticks(*self.y_range) if self.y_log else linear_ticks(*self.y_range)
        for tick in ticks:
            place = float(self.y(np.array(tick)))
            self._line(self.left, place, self.left + self.width, place)
            text(
                self.figure, self.left - 6, place + 4, f"{number(tick)}{y_unit}", text_anchor="end"
            )
        if x_label:
            middle = self.left + self.width / 2
            text(self.figure, middle, bottom + 34, x_label, text_anchor="middle")
        text(self.figure, self.left, self.top - 8, y_label)

    def points(self, x: Array, y: Array, fill: str, radius: float = 4, opacity: float = 1) -> None:
        """A dot for each of n points."""
        for across, down in zip(self.x(x), self.y(y), strict=True):
            attributes = {"cx": f"{across:.1f}", "cy": f"{down:.1f}", "r": f"{radius:g}"}
            self._add("circle", {**attributes, "fill": fill, "opacity": f"{opacity:g}"})

    def curve(self, x: Array, y: Array, stroke: str, dash: str = "none") -> None:
        attributes = {"fill": "none", "stroke": stroke, "stroke-width": "1.8"}
        self._add("path", {"d": self._path(x, y), **attributes, "stroke-dasharray": dash})

    def band(self, x: Array, low: Array, high: Array, fill: str) -> None:
        """What lies between two curves, shaded."""
        around = self._path(np.concatenate([x, x[::-1]]), np.concatenate([low, high[::-1]]))
        self._add("path", {"d": f"{around}Z", "fill": fill, "opacity": "0.16"})

    def bar(self, x: float, y: float, low: float, high: float, stroke: str) -> None:
        """An interval with its value: what is predicted."""
        across = float(self.x(np.array(x)))
        top, middle, bottom = self.y(np.array([high, y, low]))
        line = f"M{across:.1f} {top:.1f}V{bottom:.1f}M{across - 4:.1f} {top:.1f}h8"
        line += f"M{across - 4:.1f} {bottom:.1f}h8"
        self._add("path", {"d": line, "fill": "none", "stroke": stroke, "stroke-width": "1.4"})
        square = {"x": f"{across - 3.5:.1f}", "y": f"{middle - 3.5:.1f}"}
        self._add("rect", {**square, "width": "7", "height": "7", "fill": stroke})

    def _path(self, x: Array, y: Array) -> str:
        places = zip(self.x(x), self.y(y), strict=True)
        return "M" + "L".join(f"{across:.1f} {down:.1f}" for across, down in places)

    def _line(self, x1: float, y1: float, x2: float, y2: float) -> None:
        attributes = {"d": f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}", "stroke": "currentColor"}
        self._add("path", {**attributes, "opacity": "0.13"})

    def _add(self, tag: str, attributes: dict[str, str]) -> None:
        ElementTree.SubElement(self.figure, tag, attributes)


def log_ticks(low: float, high: float) -> Sequence[float]:
    """Round numbers between two, apart enough to be read on a logarithmic axis."""
    decades = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    for mantissas in MANTISSAS:
        every = [float(f"{m:g}e{int(d)}") for d in decades for m in mantissas]
        ticks = [tick for tick in every if low <= tick <= high]
        if len(ticks) >= FEWEST_TICKS:
            return ticks[:: -(-len(ticks) // MOST_TICKS)]
    return linear_ticks(low, high)


def linear_ticks(low: float, high: float) -> Sequence[float]:
    """A few round numbers between two."""
    step = 10 ** np.floor(np.log10((high - low) / 2))
    step *= next(m for m in (5, 2, 1) if (high - low) / (m * step) >= 2)
    return [float(f"{k * step:g}") for k in range(int(np.ceil(low / step)), int(high / step) + 1)]


def number(value: float) -> str:
    """A number as an axis or a table has it: 3×10¹⁸ where it is large or small."""
    if value == 0 or not np.isfinite(value) or 1e-3 <= abs(value) < 9999.5:
        return f"{value:.4g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    power = f"10{str(int(exponent)).translate(SUPERSCRIPTS)}"
    mantissa = mantissa.rstrip("0").rstrip(".")
    return power if mantissa == "1" else f"{mantissa}×{power}"
