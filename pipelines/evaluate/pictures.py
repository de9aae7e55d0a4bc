"""Draws what the report shows: superpixel borders, segment hierarchy, heat maps, as data URLs.
Arrays in, small encoded images out; knows nothing of models or pages."""

from __future__ import annotations

import base64

import cv2
import numpy as np

TARGET_SIDE_PX = 288  # pictures are brought near this long side
CRISP_BELOW_PX = 145  # smaller ones are enlarged by whole factors, pixel by pixel
WEBP_QUALITY = 90
LIGHT, DARK = (255, 255, 255), (24, 24, 28)
HEAT_COLOURS = cv2.COLORMAP_INFERNO
# The two matrices of OKLab's definition; between them lies a cube.
OKLAB_TO_LMS = np.asarray(
    [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
LMS_TO_RGB = np.asarray(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def data_url(image: np.ndarray) -> str:
    """uint8 RGB (H, W, 3) as an inline WebP image."""
    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    encoded = cv2.imencode(".webp", pixels, [cv2.IMWRITE_WEBP_QUALITY, WEBP_QUALITY])[1]
    return "data:image/webp;base64," + base64.b64encode(encoded.tobytes()).decode()


def to_canvas(image: np.ndarray) -> np.ndarray:
    """The image (H, W, 3) at the size at which pictures are drawn."""
    side = max(image.shape[:2])
    if side < CRISP_BELOW_PX:
        factor = max(1, TARGET_SIDE_PX // side)
        return image.repeat(factor, axis=0).repeat(factor, axis=1)
    scale = TARGET_SIDE_PX / side
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def fit(values: np.ndarray, canvas: np.ndarray) -> np.ndarray:
    """A map over the image (labels, mask, heat) of any size at the canvas's size."""
    kind = {"b": np.uint8, "i": np.int32}.get(values.dtype.kind, np.float32)
    return cv2.resize(values.astype(kind), canvas.shape[1::-1], interpolation=cv2.INTER_NEAREST)


def draw_borders(canvas: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The canvas with lines between the segments of a label map, dark on light and light on
    dark."""
    surroundings = cv2.blur(cv2.cvtColor(canvas, cv2.COLOR_RGB2GRAY), (15, 15))
    line = np.where(surroundings[..., None] > 120, DARK, LIGHT)
    mixed = (0.25 * canvas + 0.75 * line).astype(np.uint8)
    return np.where(_edges(fit(labels, canvas)), mixed, canvas)


def draw_hierarchy(canvas: np.ndarray, levels: list[np.ndarray]) -> list[np.ndarray]:
    """Each level's segments in colours, for nested label maps from fine to coarse.

    A segment is a shade of its parent's colour, so one thing keeps its hue on every level.
    """
    grey = cv2.cvtColor(canvas, cv2.COLOR_RGB2GRAY)[..., None]
    pictures = []
    for labels, shades in zip(levels, _nested_shades(levels), strict=True):
        fitted = fit(labels, canvas)
        present, index = np.unique(fitted, return_inverse=True)
        colours = np.asarray([_oklch_to_rgb(*shades[int(label)]) for label in present])
        tinted = 0.72 * colours[index.reshape(grey.shape[:2])] + 0.28 * grey
        pictures.append(np.where(_edges(fitted), 255, tinted).astype(np.uint8))
    return pictures


def draw_heat(canvas: np.ndarray, heat: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """A heat map over the canvas, from its least to its greatest value, with the outline of the
    true mask where there is one."""
    heat = fit(heat, canvas)
    span = heat.max() - heat.min()
    level = (heat - heat.min()) / span if span > 0 else np.zeros_like(heat)
    warm = heat_colours(level)
    grey = cv2.cvtColor(canvas, cv2.COLOR_RGB2GRAY)[..., None]
    drawn = (0.38 * grey + 0.62 * warm).astype(np.uint8)
    if mask is not None:
        outline, _ = cv2.findContours(fit(mask, canvas), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(drawn, outline, -1, DARK, 4, cv2.LINE_AA)
        cv2.drawContours(drawn, outline, -1, LIGHT, 2, cv2.LINE_AA)
    return drawn


def heat_colours(level: np.ndarray) -> np.ndarray:
    """Values in [0, 1] (H, W) to uint8 RGB (H, W, 3)."""
    return cv2.applyColorMap((255 * level).astype(np.uint8), HEAT_COLOURS)[..., ::-1]


Shade = tuple[float, float, float]  # lightness, chroma and hue in degrees, in OKLCH


def _nested_shades(levels: list[np.ndarray]) -> list[dict[int, Shade]]:
    """A shade per label and level: hues for the coarsest, variations of the parent below it."""
    coarsest = np.unique(levels[-1])
    shades: dict[int, Shade] = {
        int(label): (0.70, 0.14, 25 + 360 * n / len(coarsest)) for n, label in enumerate(coarsest)
    }
    result = [shades]
    lightness_span, hue_span = 0.26, 0.5 * 360 / len(coarsest)
    for finer, coarser in zip(levels[-2::-1], levels[:0:-1], strict=True):
        children: dict[int, Shade] = {}
        for parent, (lightness, chroma, hue) in shades.items():
            labels = np.unique(finer[coarser == parent])
            steps = np.linspace(-0.5, 0.5, len(labels)) if len(labels) > 1 else [0.0]
            for label, step in zip(labels, steps, strict=True):
                children[int(label)] = (
                    lightness + lightness_span * step,
                    chroma,
                    hue + hue_span * step,
                )
        shades, lightness_span, hue_span = children, lightness_span / 2, hue_span / 2
        result.insert(0, shades)
    return result


def _edges(labels: np.ndarray) -> np.ndarray:
    """(H, W, 1) bool: where a pixel's label differs from its left or upper neighbour's."""
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    return edge[..., None]


def _oklch_to_rgb(lightness: float, chroma: float, hue: float) -> tuple[float, float, float]:
    """OKLCH to sRGB 0 .. 255, by the definition of OKLab."""
    angle = np.radians(hue)
    oklab = np.asarray([lightness, chroma * np.cos(angle), chroma * np.sin(angle)])
    linear = (LMS_TO_RGB @ (OKLAB_TO_LMS @ oklab) ** 3).clip(0, 1)
    curved = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = (255 * curved).tolist()
    return red, green, blue
