"""Draws what the report shows: superpixel borders, segment hierarchy, heat maps, as data URLs.
Arrays in, small encoded images out; knows nothing of pages."""

from __future__ import annotations

import base64
import colorsys

import cv2
import numpy as np

BORDER = (255, 255, 255)
MASK_OUTLINE = (0, 230, 118)
MIN_SIDE_PX = 240  # smaller images are enlarged by whole factors, so that pixels stay crisp
GOLDEN_RATIO = 0.618033988749895


def data_url(image: np.ndarray) -> str:
    """uint8 RGB (H, W, 3) as an inline WebP image."""
    encoded = cv2.imencode(
        ".webp", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_WEBP_QUALITY, 88]
    )[1]
    return "data:image/webp;base64," + base64.b64encode(encoded.tobytes()).decode()


def enlarge(image: np.ndarray) -> np.ndarray:
    """Images or label maps below MIN_SIDE_PX, enlarged by a whole factor without smoothing."""
    factor = max(1, -(-MIN_SIDE_PX // min(image.shape[:2])))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def with_borders(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The image with a light line between segments of the label map (H, W)."""
    drawn, labels = enlarge(image).copy(), enlarge(labels)
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    drawn[edge] = BORDER
    return drawn


def coloured(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Segments in distinct colours over a faint image."""
    palette = np.asarray([_colour(n) for n in range(int(labels.max()) + 1)])
    tint = palette[labels]
    return with_borders((0.35 * image + 0.65 * tint).astype(np.uint8), labels)


def heat_overlay(image: np.ndarray, heat: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """A heat map (H, W) over the image, with the true mask's outline where there is one."""
    span = heat.max() - heat.min()
    level = (heat - heat.min()) / span if span > 0 else np.zeros_like(heat)
    warm = cv2.applyColorMap((255 * level).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None].repeat(3, axis=2)
    drawn = enlarge((0.4 * grey + 0.6 * warm).astype(np.uint8)).copy()
    if mask is not None:
        outline = cv2.findContours(
            enlarge(mask.astype(np.uint8)), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
        )[0]
        cv2.drawContours(drawn, outline, -1, MASK_OUTLINE, 2)
    return drawn


def _colour(n: int) -> tuple[float, float, float]:
    """The n-th of a series of hues that stay far apart."""
    red, green, blue = colorsys.hsv_to_rgb(n * GOLDEN_RATIO % 1, 0.55 + 0.3 * (n % 2), 0.95)
    return 255 * red, 255 * green, 255 * blue
