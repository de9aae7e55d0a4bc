"""Draws what the model sees: superpixel borders, segment hierarchy, heat maps, or all in a panel.
For notebooks and for the report; but for the panel it knows arrays alone."""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from caft.heat_maps import (
    UNSEEN,
    encode_one,
    encode_sentences,
    heat_maps,
    heat_on,
    labels_on,
    segment_hierarchy,
)
from caft.inputs import Texts, picture_pixels, split_batch, text_list
from caft.model import CAFT
from caft.preprocessing import Picture

TARGET_SIDE_PX = 288  # pictures are brought near this long side
CRISP_BELOW_PX = 145  # smaller ones are enlarged by whole factors, pixel by pixel
WEBP_QUALITY = 90
LIGHT, DARK = (255, 255, 255), (24, 24, 28)
PANEL_COLUMNS = 5
GAP_PX, TEXT_PX, LINE_PX = 10, 13, 17  # of a panel: between pictures, of its words
CHARACTER_PX = 6.5  # mean width, for wrapping
UNSEEN_LIGHT = 0.3  # of pixels that the model was not shown
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


@overload
def draw_panel(  # type: ignore[overload-overlap]
    model: CAFT, image: Picture, sentences: Texts = ()
) -> np.ndarray: ...
@overload
def draw_panel(
    model: CAFT, image: Sequence[Picture], sentences: Texts = ()
) -> list[np.ndarray]: ...
@torch.inference_mode()
def draw_panel(model: CAFT, image: Any, sentences: Texts = ()) -> Any:
    """All the model sees in an image, in one picture: the image, its superpixels, its segments
    from fine to coarse, and where each sentence looks. What the model was not shown is dark.

    Args:
        image: as for `caft.localize`; a list or stack of images gives a list of pictures.

    Returns:
        uint8 RGB, of a size that depends on the image's shape and the number of sentences.

    Raises:
        DataError: nothing that can be read as a picture.
    """
    several = split_batch(image)
    if several is not None:
        return [draw_panel(model, one, sentences) for one in several]
    rule = model.config.image.preprocess
    pixels, texts = picture_pixels(image, rule), text_list(sentences)
    features = encode_one(model, pixels)
    canvas = to_canvas(pixels)
    cut = features.superpixels[0].cpu().numpy()
    name = "patches" if model.config.image.encoder == "flat" else "superpixels"
    borders = draw_borders(canvas, labels_on(canvas, cut, rule))
    first = [(canvas, "image"), (borders, f"{len(np.unique(cut))} {name}")]
    levels = [labels[0].cpu().numpy() for labels in segment_hierarchy(features)]
    fitted = [labels_on(canvas, labels, rule) for labels in levels]
    for picture, labels in zip(draw_hierarchy(canvas, fitted), levels, strict=True):
        first.append((picture, f"{len(np.unique(labels))} segments"))
    rows = [first]
    if texts:
        heats = heat_maps(model, features, encode_sentences(model, texts))
        drawn = [
            (draw_heat(canvas, heat_on(canvas, heat, rule), None), s)
            for heat, s in zip(heats, texts, strict=True)
        ]
        rows += [drawn[n : n + PANEL_COLUMNS] for n in range(0, len(drawn), PANEL_COLUMNS)]
    return _sheet(rows)


def save_picture(picture: np.ndarray, path: str | Path) -> None:
    """Write uint8 RGB (H, W, 3) as `.png` or `.webp`.

    Raises:
        ValueError: another suffix.
    """
    path = Path(path)
    if path.suffix not in (".png", ".webp"):
        raise ValueError(f"{path}: pictures are saved as .png or .webp")
    path.write_bytes(_encoded(picture, path.suffix))


def data_url(image: np.ndarray) -> str:
    """uint8 RGB (H, W, 3) as an inline WebP image."""
    return "data:image/webp;base64," + base64.b64encode(_encoded(image, ".webp")).decode()


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
    dark. Pixels of label -1 were not seen, here and below: they are dark."""
    surroundings = cv2.blur(cv2.cvtColor(canvas, cv2.COLOR_RGB2GRAY), (15, 15))
    line = np.where(surroundings[..., None] > 120, DARK, LIGHT)
    mixed = (0.25 * canvas + 0.75 * line).astype(np.uint8)
    fitted = fit(labels, canvas)
    return _hidden(np.where(_edges(fitted), mixed, canvas), canvas, fitted == UNSEEN)


def draw_hierarchy(canvas: np.ndarray, levels: list[np.ndarray]) -> list[np.ndarray]:
    """Each level's segments in colours, for nested label maps from fine to coarse.

    A segment is a shade of its parent's colour, so one thing keeps its hue on every level. No
    levels make no pictures.
    """
    if not levels:
        return []
    grey = cv2.cvtColor(canvas, cv2.COLOR_RGB2GRAY)[..., None]
    pictures = []
    for labels, shades in zip(levels, _nested_shades(levels), strict=True):
        fitted = fit(labels, canvas)
        present, index = np.unique(fitted, return_inverse=True)
        colours = np.asarray([_oklch_to_rgb(*shades[int(label)]) for label in present])
        tinted = 0.72 * colours[index.reshape(grey.shape[:2])] + 0.28 * grey
        drawn = np.where(_edges(fitted), 255, tinted).astype(np.uint8)
        pictures.append(_hidden(drawn, canvas, fitted == UNSEEN))
    return pictures


def draw_heat(
    canvas: np.ndarray,
    heat: np.ndarray,
    mask: np.ndarray | None,
    segments: np.ndarray | None = None,
) -> np.ndarray:
    """A heat map over the canvas, from its least to its greatest value, with thin lines between
    the segments of a label map and the outline of the true mask, where there are such. Where it
    is NaN nothing was seen."""
    heat = fit(heat, canvas)
    unseen = np.isnan(heat)
    low, high = (0.0, 0.0) if unseen.all() else (np.nanmin(heat), np.nanmax(heat))
    heat = np.where(unseen, low, heat)
    level = (heat - low) / (high - low) if high > low else np.zeros_like(heat)
    warm = heat_colours(level)
    grey = cv2.cvtColor(canvas, cv2.COLOR_RGB2GRAY)[..., None]
    drawn = (0.38 * grey + 0.62 * warm).astype(np.uint8)
    if segments is not None:
        thin = (0.62 * drawn + 0.38 * np.asarray(LIGHT)).astype(np.uint8)
        drawn = np.where(_edges(fit(segments, canvas)), thin, drawn)
    drawn = _hidden(drawn, canvas, unseen)
    if mask is not None:
        outline, _ = cv2.findContours(fit(mask, canvas), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(drawn, outline, -1, DARK, 4, cv2.LINE_AA)
        cv2.drawContours(drawn, outline, -1, LIGHT, 2, cv2.LINE_AA)
    return drawn


def heat_colours(level: np.ndarray) -> np.ndarray:
    """Values in [0, 1] (H, W) to uint8 RGB (H, W, 3)."""
    return cv2.applyColorMap((255 * level).astype(np.uint8), HEAT_COLOURS)[..., ::-1]


def _hidden(drawn: np.ndarray, canvas: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """`drawn` with the canvas, grey and dark, at the pixels that the model was not shown."""
    if not unseen.any():
        return drawn
    grey = cv2.cvtColor(canvas, cv2.COLOR_RGB2GRAY)[..., None]
    return np.where(unseen[..., None], UNSEEN_LIGHT * grey, drawn).astype(np.uint8)


def _encoded(picture: np.ndarray, suffix: str) -> bytes:
    pixels = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    options = [cv2.IMWRITE_WEBP_QUALITY, WEBP_QUALITY] if suffix == ".webp" else []
    return cv2.imencode(suffix, pixels, options)[1].tobytes()


def _sheet(rows: list[list[tuple[np.ndarray, str]]]) -> np.ndarray:
    """Rows of equally large pictures on white, each with words below it."""
    height, width = rows[0][0][0].shape[:2]
    wrapped = [
        [textwrap.wrap(words, max(1, int(width / CHARACTER_PX))) for _, words in row]
        for row in rows
    ]
    text_heights = [LINE_PX * max(map(len, row)) for row in wrapped]
    columns = max(map(len, rows))
    sheet = Image.new(
        "RGB",
        (
            GAP_PX + columns * (width + GAP_PX),
            GAP_PX + sum(height + text + 2 * GAP_PX for text in text_heights),
        ),
        LIGHT,
    )
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT_PX)
    top = GAP_PX
    for row, words, text_height in zip(rows, wrapped, text_heights, strict=True):
        for n, ((picture, _), lines) in enumerate(zip(row, words, strict=True)):
            left = GAP_PX + n * (width + GAP_PX)
            sheet.paste(Image.fromarray(picture), (left, top))
            for m, line in enumerate(lines):
                place = (left, top + height + GAP_PX // 2 + m * LINE_PX)
                pen.text(place, line, fill=DARK, font=font)
        top += height + text_height + 2 * GAP_PX
    return np.asarray(sheet)


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
