"""Seeded scenes of coloured shapes with long captions and a mask per sentence.
The part of the demo on which a small model can be seen to learn and to localise on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

import cv2
import numpy as np

from caft.config import Config

COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 150, 60),
    "blue": (40, 90, 220),
    "yellow": (240, 208, 40),
    "purple": (142, 60, 190),
    "orange": (245, 140, 30),
    "pink": (245, 150, 195),
    "brown": (121, 75, 45),
    "black": (30, 30, 34),
    "cyan": (60, 200, 214),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond", "ring", "bar")
TEXTURES = ("plain", "striped", "dotted", "checkered")
SIZES = ("small", "large")
ROWS, COLUMNS = ("upper", "middle", "lower"), ("left", "centre", "right")
PLACES = tuple(f"{row} {column}" for row in ROWS for column in COLUMNS)
WHITE = 255
MAX_SENTENCES = 8
MIN_VISIBLE = 0.5  # of an object's pixels, under those drawn after it

OBJECT_WORDINGS = (
    "A {look} is in the {place}",
    "In the {place} there is a {look}",
    "The {place} of the picture shows a {look}",
    "You can see a {look} at the {place}",
    "At the {place} sits one {look}",
    "Someone drew a {look} in the {place} part",
    "The {place} holds a {look}",
)
RELATION_WORDINGS = (
    "The {a} is {relation} the {b}",
    "One finds the {a} {relation} the {b}",
    "Looking closely, the {a} lies {relation} the {b}",
    "The {a} was placed {relation} the {b}",
    "You can see the {a} {relation} the {b}",
    "In the picture, the {a} sits {relation} the {b}",
    "Someone drew the {a} {relation} the {b}",
)
Kind = Literal["attribute", "position", "swap"]
MAX_GROUP = len(TEXTURES)  # a group on textures has one scene per texture


class SceneConfig(Config):
    """`hard` draws more objects, with textures, that may cover parts of each other."""

    image_size_px: int = 96
    hard: bool = False

    @property
    def object_counts(self) -> range:
        return range(5, 9) if self.hard else range(3, 6)

    @property
    def jitter(self) -> float:
        """Largest offset from the middle of a place, in image widths."""
        return 0.09 if self.hard else 0.035

    @property
    def radii(self) -> dict[str, float]:
        """Half the extent of an object, in image widths."""
        return {"small": 0.085, "large": 0.165 if self.hard else 0.14}


@dataclass(frozen=True)
class SceneObject:
    colour: str
    shape: str
    size: str
    texture: str
    place: int  # index into PLACES
    offset: tuple[float, float]  # from the middle of its place, x and y, in image widths


@dataclass(frozen=True)
class Wording:
    """How a scene is told, apart from what is in it; variants of a scene share it."""

    objects: tuple[int, ...]  # a wording per object
    relations: tuple[tuple[int, int, int], ...]  # object, object, wording
    order: tuple[int, ...]
    background: int
    noise_seed: int


@dataclass(frozen=True)
class Scene:
    image: np.ndarray  # (H, W, 3) uint8
    sentences: tuple[str, ...]
    masks: tuple[np.ndarray, ...]  # (H, W) bool per sentence: what can be seen of its objects
    objects: tuple[SceneObject, ...]

    @property
    def caption(self) -> str:
        return ". ".join(self.sentences) + "."


def render_scene(seed: int, config: SceneConfig) -> Scene:
    """The scene of a seed: the same seed gives the same bytes and words."""
    rng = np.random.default_rng(seed)
    while True:
        count = int(rng.choice(config.object_counts))
        objects, wording = _draw_objects(rng, config, count), _draw_wording(rng, count)
        scene = _compose(objects, wording, config)
        if scene is not None:
            return scene


def contrast_groups(seed: int, config: SceneConfig, kind: Kind, size: int = 4) -> list[Scene]:
    """Scenes that differ in exactly one way, told in the same words otherwise.

    `attribute` changes one object's colour, shape or texture, `position` moves one object,
    `swap` exchanges the colours of two. Each caption is true of its own scene alone. Without
    `config.hard` captions do not speak of textures, and none is changed.

    Raises:
        ValueError: `size` is not 2 to MAX_GROUP.
    """
    if not 2 <= size <= MAX_GROUP:
        raise ValueError(f"size: a group has 2 to {MAX_GROUP} scenes, got {size}")
    rng = np.random.default_rng((seed, 1))
    while True:
        count = int(rng.choice([c for c in config.object_counts if c <= len(PLACES) - size + 1]))
        objects, wording = _draw_objects(rng, config, count), _draw_wording(rng, count)
        variants = [objects, *_variants(objects, kind, config, rng)][:size]
        scenes = [_compose(variant, wording, config) for variant in variants]
        whole = [scene for scene in scenes if scene is not None]
        if len(whole) == size and len({scene.caption for scene in whole}) == size:
            return whole


def _variants(
    objects: tuple[SceneObject, ...], kind: Kind, config: SceneConfig, rng: np.random.Generator
) -> Iterator[tuple[SceneObject, ...]]:
    if kind == "swap":
        for a, b in rng.permutation(list(combinations(range(len(objects)), 2))):
            changed = list(objects)
            changed[a] = replace(objects[a], colour=objects[b].colour)
            changed[b] = replace(objects[b], colour=objects[a].colour)
            yield tuple(changed)
        return
    which = int(rng.integers(len(objects)))
    target = objects[which]
    if kind == "position":
        taken = {item.place for item in objects}
        free = rng.permutation([place for place in range(len(PLACES)) if place not in taken])
        changes = [replace(target, place=int(place)) for place in free]
    else:
        values = {"colour": tuple(COLOURS), "shape": SHAPES, "texture": TEXTURES}
        attribute = str(rng.choice(["colour", "shape", *(["texture"] if config.hard else [])]))
        # A colour names its object, so two objects never share one; the rest may repeat.
        owners = objects if attribute == "colour" else (target,)
        taken_values = {getattr(item, attribute) for item in owners}
        free_values = [value for value in values[attribute] if value not in taken_values]
        drawn: list[dict[str, Any]] = [{attribute: str(v)} for v in rng.permutation(free_values)]
        changes = [replace(target, **change) for change in drawn]
    for change in changes:
        yield (*objects[:which], change, *objects[which + 1 :])


def _draw_objects(
    rng: np.random.Generator, config: SceneConfig, count: int
) -> tuple[SceneObject, ...]:
    places = rng.permutation(len(PLACES))[:count]
    colours = rng.permutation(list(COLOURS))[:count]  # distinct: a colour names its object
    return tuple(
        SceneObject(
            colour=str(colour),
            shape=str(rng.choice(SHAPES)),
            size=str(rng.choice(SIZES)),
            texture=str(rng.choice(TEXTURES)) if config.hard else "plain",
            place=int(place),
            offset=tuple(rng.uniform(-config.jitter, config.jitter, 2).tolist()),
        )
        for place, colour in zip(places, colours, strict=True)
    )


def _draw_wording(rng: np.random.Generator, count: int) -> Wording:
    told = int(rng.integers(1, 4)) if count < 6 else MAX_SENTENCES - count
    pairs = rng.permutation(list(combinations(range(count), 2)))[:told]
    relations = tuple(
        (int(a), int(b), int(rng.integers(len(RELATION_WORDINGS))))
        for a, b in (rng.permutation(pair) for pair in pairs)
    )
    return Wording(
        objects=tuple(rng.integers(len(OBJECT_WORDINGS), size=count).tolist()),
        relations=relations,
        order=tuple(rng.permutation(count + len(relations)).tolist()),
        background=int(rng.integers(222, 250)),
        noise_seed=int(rng.integers(2**31)),
    )


def _compose(
    objects: tuple[SceneObject, ...], wording: Wording, config: SceneConfig
) -> Scene | None:
    """Draw and tell a scene; None where an object is mostly covered by later ones."""
    size = config.image_size_px
    image = np.full((size, size, 3), wording.background, dtype=np.uint8)
    full = [_draw_mask(item, config) for item in objects]
    owner = np.full((size, size), -1)
    for n, (item, mask) in enumerate(zip(objects, full, strict=True)):
        image[mask] = _paint(item, size)[mask]
        owner[mask] = n
    visible = [owner == n for n in range(len(objects))]
    if any(v.sum() < MIN_VISIBLE * f.sum() for v, f in zip(visible, full, strict=True)):
        return None
    noise = np.random.default_rng(wording.noise_seed).integers(-7, 8, image.shape)
    image = np.clip(image.astype(np.int16) + noise, 0, 255).astype(np.uint8)
    sentences, masks = [], []
    for item, mask, template in zip(objects, visible, wording.objects, strict=True):
        place = PLACES[item.place]
        look = _look(item, config)
        sentences.append(OBJECT_WORDINGS[template].format(look=look, place=place))
        masks.append(mask)
    for a, b, template in wording.relations:
        sentences.append(
            RELATION_WORDINGS[template].format(
                a=_name(objects[a]), b=_name(objects[b]), relation=_relation(objects[a], objects[b])
            )
        )
        masks.append(visible[a] | visible[b])
    return Scene(
        image,
        tuple(sentences[n] for n in wording.order),
        tuple(masks[n] for n in wording.order),
        objects,
    )


def _name(item: SceneObject) -> str:
    return f"{item.colour} {item.shape}"


def _look(item: SceneObject, config: SceneConfig) -> str:
    """What tells an object apart. Where textures occur even `plain` is said: without it a
    caption of a plain object would be true of a striped one as well."""
    texture = f"{item.texture} " if config.hard else ""
    return f"{item.size} {texture}{_name(item)}"


def _relation(a: SceneObject, b: SceneObject) -> str:
    (row_a, column_a), (row_b, column_b) = divmod(a.place, 3), divmod(b.place, 3)
    if abs(column_a - column_b) > abs(row_a - row_b):
        return "to the left of" if column_a < column_b else "to the right of"
    return "above" if row_a < row_b else "below"


def _centre(item: SceneObject, size: int, radius: int) -> tuple[int, int]:
    """The middle of an object, x and y in pixels, moved inwards until all of it is in the image."""
    row, column = divmod(item.place, 3)
    x, y = (
        min(max(round(((cell + 0.5) / 3 + shift) * size), radius), size - 1 - radius)
        for cell, shift in zip((column, row), item.offset, strict=True)
    )
    return x, y


def _draw_mask(item: SceneObject, config: SceneConfig) -> np.ndarray:
    size = config.image_size_px
    r = round(config.radii[item.size] * size)
    x, y = _centre(item, size, r)
    mask = np.zeros((size, size), dtype=np.uint8)
    if item.shape == "circle":
        cv2.circle(mask, (x, y), r, 1, -1)
    elif item.shape == "ring":
        cv2.circle(mask, (x, y), r - max(1, r // 6), 1, max(3, r // 3))
    elif item.shape == "bar":
        cv2.rectangle(mask, (x - r, y - r // 2), (x + r, y + r // 2), 1, -1)
    elif item.shape == "cross":
        arm = max(2, r // 3)
        cv2.rectangle(mask, (x - r, y - arm), (x + r, y + arm), 1, -1)
        cv2.rectangle(mask, (x - arm, y - r), (x + arm, y + r), 1, -1)
    else:
        cv2.fillPoly(mask, [_corners(item.shape, x, y, r)], 1)
    return mask.astype(bool)


def _corners(shape: str, x: int, y: int, r: int) -> np.ndarray:
    if shape == "square":
        side = round(r * 0.88)
        offsets = [(-side, -side), (side, -side), (side, side), (-side, side)]
    elif shape == "triangle":
        offsets = [(0, -r), (r, r), (-r, r)]
    elif shape == "diamond":
        offsets = [(0, -r), (r, 0), (0, r), (-r, 0)]
    else:  # star
        angles = np.arange(10) * np.pi / 5 - np.pi / 2
        radii = np.where(np.arange(10) % 2 == 0, r, 0.45 * r)
        offsets = np.rint(np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)).tolist()
    return np.asarray([(x + dx, y + dy) for dx, dy in offsets], dtype=np.int32)


def _paint(item: SceneObject, size: int) -> np.ndarray:
    """The object's colour over the whole image, with its texture in a lighter shade."""
    colour = np.asarray(COLOURS[item.colour], dtype=np.uint8)
    painted = np.full((size, size, 3), colour)
    if item.texture != "plain":
        painted[_pattern(item.texture, size)] = (colour.astype(int) + 2 * WHITE) // 3
    return painted


def _pattern(texture: str, size: int) -> np.ndarray:
    """Where a texture is light, (H, W) bool."""
    y, x = np.mgrid[:size, :size]
    step = max(3, size // 24)
    if texture == "striped":
        return (x + y) // step % 2 == 0
    if texture == "dotted":
        return (x % (step + 2) < 2) & (y % (step + 2) < 2)
    return (x // step + y // step) % 2 == 0  # checkered
