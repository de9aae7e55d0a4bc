"""What near duplicates are worth: pictures removed wrongly, and true copies that are found.

Of each kind, 100 different pictures and copies of the first 30 of them: re-encoded, resized, and
cropped by 1% and 2% of a side. Printed for a distance: pictures that the hash alone would remove,
those that are removed with the second look, and of the copies that the hash finds the share that
the second look confirms.

    python benchmarks/near_duplicates.py --distances 2 4
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import pipelines.demo
from pipelines.data.config import ImageConfig
from pipelines.data.dedup.looks import as_looks, same_picture
from pipelines.data.images.prepare import prepare_image

PICTURES, COPIED = 100, 30
VOCABULARY = (
    "dog fox quick cloud seven river stone house lazy jumps annual report over paper lamp brown "
    "engine love never always dream small start today life garden silver winter"
)
LETTERS = list("abcdefghijklmnoprstuvwz")
BLUE, INK = (30, 60, 120), (30, 30, 30)


def quote_card(rng: np.random.Generator) -> Image.Image:
    picture, draw = _canvas((400, 225), BLUE)
    for line in range(3):
        draw.text((60, 70 + 25 * line), _words(rng, 4), "white", _font(16))
    return picture


def quote_on_white(rng: np.random.Generator) -> Image.Image:
    picture, draw = _canvas((500, 500))
    lines = int(rng.integers(2, 5))
    for line in range(lines):
        at = (250, 250 - 25 * lines + 50 * line)
        draw.text(at, _words(rng, int(rng.integers(2, 5))), INK, _font(28), anchor="ma")
    return picture


def word_on_white(rng: np.random.Generator) -> Image.Image:
    picture, draw = _canvas((400, 300))
    draw.text((200, 150), _name(rng), "black", _font(40), anchor="mm")
    return picture


def logo(rng: np.random.Generator) -> Image.Image:
    picture, draw = _canvas((300, 300))
    colour = tuple(int(value) for value in rng.integers(0, 220, 3))
    match rng.integers(3):
        case 0:
            draw.ellipse((90, 50, 210, 170), colour)
        case 1:
            draw.rectangle((90, 50, 210, 170), colour)
        case _:
            draw.polygon([(150, 50), (90, 170), (210, 170)], colour)
    draw.text((150, 220), _name(rng), colour, _font(32), anchor="mm")
    return picture


def product(rng: np.random.Generator) -> Image.Image:
    picture, draw = _canvas((360, 360))
    colour = tuple(int(value) for value in rng.integers(20, 200, 3))
    width, height = int(rng.integers(70, 100)), int(rng.integers(90, 130))
    box = (180 - width, 180 - height, 180 + width, 180 + height)
    draw.rounded_rectangle(box, 20, colour)
    draw.text((180, 180), _words(rng, 1), "white", _font(30), anchor="mm")
    return picture


def sky(rng: np.random.Generator) -> Image.Image:
    top = np.array([40, 90, 180]) + rng.integers(-25, 25, 3)
    low = np.array([170, 200, 235]) + rng.integers(-20, 20, 3)
    share = np.linspace(0, 1, 270)[:, None, None] ** rng.uniform(0.7, 1.4)
    pixels = np.broadcast_to(top * (1 - share) + low * share, (270, 400, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def page_of_text(rng: np.random.Generator) -> Image.Image:
    picture, draw = _canvas((400, 520))
    for line in range(26):
        draw.text((40, 40 + 17 * line), _words(rng, 9)[:58], INK, _font(11))
    return picture


def noise(rng: np.random.Generator) -> Image.Image:
    return Image.fromarray((128 + rng.normal(0, 30, (240, 320, 3))).clip(0, 255).astype(np.uint8))


KINDS: dict[str, Callable[[np.random.Generator], Image.Image]] = {
    "quote cards": quote_card,
    "quotes on white": quote_on_white,
    "a word on white": word_on_white,
    "logos": logo,
    "products": product,
    "skies": sky,
    "pages of text": page_of_text,
    "noise": noise,
}


def photographs() -> list[Image.Image]:
    folder = Path(pipelines.demo.__file__).with_name("photographs")
    return [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.jpg"))]


def copies(picture: Image.Image) -> Iterator[tuple[str, bytes]]:
    """Copies of a picture, as (kind, encoded)."""
    width, height = picture.size
    for name, image, options in (
        ("re-encoded", picture, {"quality": 50}),
        ("re-encoded", picture, {"quality": 85}),
        ("re-encoded", picture, {"format": "WEBP", "quality": 60}),
        ("resized", picture.resize((width // 2, height // 2), Image.Resampling.BOX), {}),
        ("resized", picture.resize((width // 3, height // 3), Image.Resampling.BICUBIC), {}),
        ("resized", picture.resize((2 * width, 2 * height), Image.Resampling.BICUBIC), {}),
    ):
        yield name, encoded(image, **options)
    for share in (0.01, 0.02):
        x, y = round(share * width), round(share * height)
        for box in ((0, 0, width - x, height), (0, 0, width, height - y)):
            yield f"cropped {share:.0%}", encoded(picture.crop(box))


def encoded(picture: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, **({"format": "JPEG", "quality": 80} | options))  # type: ignore[arg-type]
    return buffer.getvalue()


def seen(data: bytes) -> tuple[int, bytes]:
    """Hash and look, as the data stage makes them."""
    row = prepare_image(data, ImageConfig())
    return row["phash"], row["look"]


def removed(pictures: list[tuple[int, bytes]], distance: int) -> tuple[int, int]:
    """Of different pictures: how many a near hash alone removes, and with the second look."""
    hashes = np.array([phash for phash, _ in pictures], np.uint64)
    near = np.bitwise_count(hashes[:, None] ^ hashes) <= distance
    later, earlier = np.nonzero(np.tril(near, -1))
    same = same_picture(as_looks([look for _, look in pictures]), later, earlier)
    return len(np.unique(later)), len(np.unique(later[same]))


def found(originals: list[Image.Image], distance: int) -> dict[str, list[bool]]:
    """Of true copies that the hash finds, by kind, whether the look confirms each."""
    by_kind: dict[str, list[bool]] = {}
    for picture in originals:
        original = seen(encoded(picture, quality=92))
        for name, data in copies(picture):
            copy = seen(data)
            if (original[0] ^ copy[0]).bit_count() <= distance:
                looks = as_looks([original[1], copy[1]])
                same = same_picture(looks, np.array([0]), np.array([1]))
                by_kind.setdefault(name, []).append(bool(same[0]))
    return by_kind


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--distances", type=int, nargs="+", default=[2, 4])
    args = parser.parse_args()
    columns = ["re-encoded", "resized", "cropped 1%", "cropped 2%"]
    for distance in args.distances:
        print(
            f"\nDistance {distance}\n\n| of 100 | hash alone | with the look | "
            + " | ".join(columns)
        )
        print("|---|---|---|" + "---|" * len(columns))
        for name in [*KINDS, "photographs"]:
            rng = np.random.default_rng(0)
            pictures = (
                [KINDS[name](rng) for _ in range(PICTURES)] if name in KINDS else photographs()
            )
            alone, confirmed = removed([seen(encoded(p, quality=92)) for p in pictures], distance)
            by_kind = found(pictures[:COPIED], distance)
            shares = [
                f"{sum(by_kind[kind])} of {len(by_kind[kind])}" if kind in by_kind else "none"
                for kind in columns
            ]
            print(f"| {name} | {alone} | {confirmed} | {' | '.join(shares)} |", flush=True)


def _canvas(
    size: tuple[int, int], colour: object = "white"
) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    picture = Image.new("RGB", size, colour)  # type: ignore[arg-type]
    return picture, ImageDraw.Draw(picture)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _words(rng: np.random.Generator, count: int) -> str:
    return " ".join(rng.choice(VOCABULARY.split(), count))


def _name(rng: np.random.Generator) -> str:
    return "".join(rng.choice(LETTERS, int(rng.integers(4, 9))))


if __name__ == "__main__":
    main()
