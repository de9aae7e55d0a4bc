"""The figure of best sizes: runs of equal compute with their parabolas, and N* over compute.
Between the study and its report."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np

from caft.scaling_law.figures import (
    BOTTOM,
    CURVE_POINTS,
    GAP,
    LEFT,
    LEGEND_LINE,
    MAIN,
    MARGIN,
    RIGHT,
    TOP,
    WIDTH,
    Panel,
    colour,
    new_figure,
    number,
    render,
    text,
)
from caft.scaling_law.isoflop import IsoFLOP

COLUMNS = 4  # of the legend
WIDER = LEFT + 24  # numbers of parameters are long
BELOW = 220.0  # height of the panel of best sizes


def isoflop_figure(target: str, found: IsoFLOP) -> str:
    """Error over size, a colour for each budget, above; best size over compute, below."""
    names = [f"compute {number(profile.compute)}" for profile in found.profiles]
    growths = [growth for growth in found.growths if len(growth.compute)]
    legend = LEGEND_LINE * (-(-len(names) // COLUMNS) + 1)
    between = GAP + BOTTOM
    height = TOP + legend + MAIN + between + LEGEND_LINE + BELOW + BOTTOM
    figure = new_figure(WIDTH, height, f"{target} against size at equal compute, and best sizes")
    sizes = np.concatenate([profile.parameters for profile in found.profiles])
    errors = np.concatenate([profile.error for profile in found.profiles])
    inner = WIDTH - WIDER - RIGHT
    top = TOP + legend
    upper = Panel(figure, WIDER, top, inner, MAIN, _range(sizes), _range(errors))
    upper.axes("parameters", target)
    for place, profile in enumerate(found.profiles):
        upper.points(profile.parameters, profile.error, colour(place), radius=3)
        ends = profile.parameters.min(), profile.parameters.max()
        x = np.geomspace(*ends, CURVE_POINTS)
        upper.curve(x, profile.curve(x), colour(place))
        least = float(profile.curve(np.array([profile.best]))[0])
        upper.bar(profile.best, least, least, least, colour(place))
    computes = np.concatenate([growth.compute for growth in growths])
    best = np.concatenate([growth.parameters for growth in growths])
    lower_top = top + MAIN + between + LEGEND_LINE
    lower = Panel(figure, WIDER, lower_top, inner, BELOW, _range(computes), _range(best))
    lower.axes("compute", "")
    for place, growth in enumerate(growths):
        shade = colour(place)
        lower.points(growth.compute, growth.parameters, shade, radius=3.5)
        x = np.geomspace(computes.min(), computes.max(), CURVE_POINTS)
        middle = np.exp(np.log(growth.compute).mean()), np.exp(np.log(growth.parameters).mean())
        slope = float(growth.exponent.value[0])
        lower.curve(x, middle[1] * (x / middle[0]) ** slope, shade)
        across = LEFT + place * (WIDTH - LEFT) / len(growths)
        _key(figure, across, lower_top - 12, shade, f"N*: {growth.approach}, C^{slope:.2f}")
    for place, name in enumerate(names):
        across = LEFT + place % COLUMNS * (WIDTH - LEFT) / COLUMNS
        _key(figure, across, 16 + place // COLUMNS * LEGEND_LINE, colour(place), name)
    return render(figure)


def _key(figure: ElementTree.Element, across: float, down: float, shade: str, label: str) -> None:
    text(figure, across, down, "●", fill=shade)
    text(figure, across + 14, down, label)


def _range(values: np.ndarray) -> tuple[float, float]:
    return float(values.min() / MARGIN), float(values.max() * MARGIN)
