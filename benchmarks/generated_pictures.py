"""Kinds of pictures of little structure, drawn at random: what near duplicates are tried on.
Each function draws one picture; equal generators give equal pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

VOCABULARY = (
    "dog fox quick cloud seven river stone house lazy jumps annual report over paper lamp brown "
    "engine love never always dream small start today life garden silver winter"
)
LETTERS = list("abcdefghijklmnoprstuvwz")
BLUE, INK = (30, 60, 120), (30, 30, 30)
FONTS = ("DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Italic", "STIXGeneral")


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


def quote_in_other_fonts(rng: np.random.Generator) -> Image.Image:
    """One font and size of several for the picture; centred."""
    picture, draw = _canvas((480, 360), (245, 240, 225))
    font = _font(int(rng.integers(18, 30)), str(rng.choice(FONTS)))
    for line in range(3):
        draw.text((240, 110 + 45 * line), _words(rng, 3), (90, 40, 30), font, anchor="ma")
    return picture


def word_on_white(rng: np.random.Generator) -> Image.Image:
    picture, draw = _canvas((400, 300))
    draw.text((200, 150), _name(rng), "black", _font(40), anchor="mm")
    return picture


def word_in_serif_on_black(rng: np.random.Generator) -> Image.Image:
    picture, draw = _canvas((640, 360), "black")
    draw.text((320, 180), _name(rng), (230, 200, 90), _font(56, "DejaVuSerif"), anchor="mm")
    return picture


def logo(rng: np.random.Generator) -> Image.Image:
    picture, draw = _canvas((300, 300))
    colour = _colour(rng, 0, 220)
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
    colour = _colour(rng, 20, 200)
    width, height = int(rng.integers(70, 100)), int(rng.integers(90, 130))
    box = (180 - width, 180 - height, 180 + width, 180 + height)
    draw.rounded_rectangle(box, 20, colour)
    draw.text((180, 180), _words(rng, 1), "white", _font(30), anchor="mm")
    return picture


def bottle_on_white(rng: np.random.Generator) -> Image.Image:
    """Product shots of one shape: glass, label and lid of other colours, and a shadow."""
    picture, draw = _canvas((400, 400))
    draw.ellipse((120, 345, 290, 375), (225, 225, 225))
    picture = picture.filter(ImageFilter.GaussianBlur(6))
    draw = ImageDraw.Draw(picture)
    draw.rounded_rectangle((140, 110, 260, 365), 25, _colour(rng, 40, 220))
    draw.rectangle((178, 50, 222, 115), _colour(rng, 30, 200))
    draw.rectangle((140, 200, 260, 300), _colour(rng, 180, 255))
    draw.text((200, 250), _name(rng)[:6], INK, _font(24), anchor="mm")
    return picture


def sky(rng: np.random.Generator) -> Image.Image:
    top = np.array([40, 90, 180]) + rng.integers(-25, 25, 3)
    low = np.array([170, 200, 235]) + rng.integers(-20, 20, 3)
    share = np.linspace(0, 1, 270)[:, None, None] ** rng.uniform(0.7, 1.4)
    pixels = np.broadcast_to(top * (1 - share) + low * share, (270, 400, 3))
    return _picture(pixels)


def gradient(rng: np.random.Generator) -> Image.Image:
    """From one colour to another, in any direction."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-1:1:300j, -1:1:400j]
    share = ((x * np.cos(angle) + y * np.sin(angle)) / 2.9 + 0.5)[:, :, None]
    one, other = (np.array(_colour(rng, 0, 255)) for _ in range(2))
    return _picture(one * (1 - share) + other * share)


def sea_and_sky(rng: np.random.Generator) -> Image.Image:
    """Two gradients and a horizon, with the grain of a camera."""
    horizon = int(rng.integers(120, 180))
    pixels = np.empty((300, 400, 3))
    for rows, base in ((slice(0, horizon), (120, 160, 210)), (slice(horizon, 300), (40, 80, 110))):
        ends = [np.array(base) + rng.integers(-25, 25, 3) for _ in range(2)]
        share = np.linspace(0, 1, pixels[rows].shape[0])[:, None, None]
        pixels[rows] = ends[0] * (1 - share) + ends[1] * share
    return _picture(pixels + rng.normal(0, 3, (300, 400, 1)))


def night(rng: np.random.Generator) -> Image.Image:
    """A dark scene with some lights."""
    picture, draw = _canvas((400, 300), (8, 8, 16))
    draw.rectangle((0, 220, 400, 300), (14, 13, 15))
    for _ in range(int(rng.integers(3, 9))):
        x, y, size = rng.integers(20, 380), rng.integers(60, 230), int(rng.integers(2, 7))
        draw.ellipse((x - size, y - size, x + size, y + size), (255, 230, int(rng.integers(255))))
    pixels = np.asarray(picture.filter(ImageFilter.GaussianBlur(1.5)), float)
    return _picture(pixels + rng.normal(0, 2, pixels.shape))


def moon(rng: np.random.Generator) -> Image.Image:
    picture, draw = _canvas((400, 400), (5, 6, 14))
    x, y = (int(value) for value in rng.integers(150, 250, 2))
    size = int(rng.integers(40, 70))
    draw.ellipse((x - size, y - size, x + size, y + size), (235, 230, 215))
    shade = int(rng.integers(10, 60))
    draw.ellipse((x - size + shade, y - size, x + size + shade, y + size), (5, 6, 14))
    return picture.filter(ImageFilter.GaussianBlur(1))


def page_of_text(rng: np.random.Generator) -> Image.Image:
    picture, draw = _canvas((400, 520))
    for line in range(26):
        draw.text((40, 40 + 17 * line), _words(rng, 9)[:58], INK, _font(11))
    return picture


def page_in_serif(rng: np.random.Generator) -> Image.Image:
    picture, draw = _canvas((620, 800), (252, 250, 244))
    draw.text((310, 50), _words(rng, 3), INK, _font(22, "DejaVuSerif-Bold"), anchor="ma")
    for line in range(32):
        draw.text((60, 110 + 20 * line), _words(rng, 10)[:62], INK, _font(12, "DejaVuSerif"))
    return picture


def slide(rng: np.random.Generator) -> Image.Image:
    """Of one template: a bar, a title and three points."""
    picture, draw = _canvas((640, 360))
    draw.rectangle((0, 0, 640, 60), (0, 70, 130))
    draw.rectangle((0, 340, 640, 360), (230, 120, 20))
    draw.text((30, 14), _words(rng, 3), "white", _font(28))
    for line in range(3):
        draw.text((50, 100 + 70 * line), f"\N{BULLET} {_words(rng, 4)}", INK, _font(22))
    return picture


def screenshot(rng: np.random.Generator) -> Image.Image:
    """Of one program: a side bar, a title bar and a list."""
    picture, draw = _canvas((800, 500), (250, 250, 252))
    draw.rectangle((0, 0, 180, 500), (38, 42, 54))
    draw.rectangle((180, 0, 800, 44), (66, 84, 176))
    for line in range(7):
        draw.text((24, 60 + 32 * line), _words(rng, 1), (190, 195, 205), _font(15))
        draw.line((200, 104 + 52 * line, 780, 104 + 52 * line), (222, 222, 226))
        draw.text((210, 70 + 52 * line), _words(rng, 6), INK, _font(15))
    return picture


def chat(rng: np.random.Generator) -> Image.Image:
    """Bubbles of a conversation on a telephone."""
    picture, draw = _canvas((360, 640), (236, 229, 221))
    draw.rectangle((0, 0, 360, 56), (7, 94, 84))
    for line in range(7):
        width, mine = int(rng.integers(120, 250)), line % 2
        left = 350 - width if mine else 10
        box = (left, 76 + 76 * line, left + width, 136 + 76 * line)
        draw.rounded_rectangle(box, 12, (220, 248, 198) if mine else "white")
        draw.text((left + 12, 90 + 76 * line), _words(rng, 4)[: width // 9], INK, _font(15))
    return picture


def bar_chart(rng: np.random.Generator) -> Image.Image:
    picture, draw = _canvas((480, 320))
    draw.line((50, 20, 50, 280), INK, 2)
    draw.line((50, 280, 460, 280), INK, 2)
    for n, height in enumerate(rng.integers(30, 240, 6).tolist()):
        draw.rectangle((75 + 64 * n, 280 - height, 115 + 64 * n, 279), (31, 119, 180))
        draw.text((95 + 64 * n, 295), _name(rng)[:4], INK, _font(12), anchor="mm")
    return picture


def line_chart(rng: np.random.Generator) -> Image.Image:
    picture, draw = _canvas((480, 320))
    for level in range(5):
        draw.line((50, 40 + 60 * level, 460, 40 + 60 * level), (225, 225, 225))
    draw.line([(50, 20), (50, 280), (460, 280)], INK, 2)
    for colour in ((31, 119, 180), (255, 127, 14)):
        heights = 150 + np.cumsum(rng.normal(0, 14, 42))
        points = [(50 + 10 * n, float(y)) for n, y in enumerate(heights.clip(30, 275))]
        draw.line(points, colour, 2)
    draw.text((255, 10), _words(rng, 3), INK, _font(14), anchor="ma")
    return picture


def pie_chart(rng: np.random.Generator) -> Image.Image:
    picture, draw = _canvas((320, 320))
    edges = np.cumsum(rng.uniform(0.3, 1, 5))
    edges = 360 * edges / edges[-1]
    colours = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3")
    for start, end, colour in zip([0, *edges], edges, colours, strict=False):
        draw.pieslice((60, 60, 260, 260), start, end, colour)
    return picture


def street_map(rng: np.random.Generator) -> Image.Image:
    picture, draw = _canvas((400, 400), (242, 239, 233))
    x, y = (int(value) for value in rng.integers(40, 300, 2))
    draw.rectangle((x, y, x + 80, y + 60), (200, 225, 190))
    water = [(0, int(rng.integers(250, 380))), (400, int(rng.integers(250, 380)))]
    draw.line(water, (170, 211, 223), 26)
    for width, colour, count in ((4, "white", 24), (8, (252, 214, 164), 3)):
        for _ in range(count):
            at, slope = int(rng.integers(-50, 450)), int(rng.integers(-60, 60))
            ends = [(at, 0), (at + slope, 400)] if rng.integers(2) else [(0, at), (400, at + slope)]
            draw.line(ends, colour, width)
    return picture


def qr_code(rng: np.random.Generator) -> Image.Image:
    modules = rng.integers(0, 2, (29, 29)).astype(np.uint8)
    finder = np.zeros((8, 8), np.uint8)
    finder[:7, :7] = 1
    finder[1:6, 1:6] = 0
    finder[2:5, 2:5] = 1
    modules[:8, :8], modules[:8, -8:], modules[-8:, :8] = finder, finder[:, ::-1], finder[::-1]
    code = Image.fromarray(255 * (1 - modules)).resize((290, 290), Image.Resampling.NEAREST)
    picture, _ = _canvas((350, 350))
    picture.paste(code, (30, 30))
    return picture


def bar_code(rng: np.random.Generator) -> Image.Image:
    picture, draw = _canvas((400, 240))
    edges = 40 + np.cumsum(rng.integers(2, 8, 70))
    for start, end in edges[: 2 * (len(edges) // 2)].reshape(-1, 2).tolist():
        if end < 360:
            draw.rectangle((start, 30, end - 1, 190), "black")
    digits = "".join(map(str, rng.integers(0, 10, 12)))
    draw.text((200, 212), digits, "black", _font(20, "DejaVuSansMono"), anchor="mm")
    return picture


def sheet_music(rng: np.random.Generator) -> Image.Image:
    picture, draw = _canvas((480, 620))
    for staff in range(7):
        top = 50 + 80 * staff
        for line in range(5):
            draw.line((30, top + 8 * line, 450, top + 8 * line), "black")
        for x in range(60, 440, 28):
            if rng.random() < 0.85:
                y = top + 4 * int(rng.integers(-1, 10))
                draw.ellipse((x, y - 4, x + 10, y + 4), "black")
                up = y > top + 16
                draw.line((x + 10 * up, y, x + 10 * up, y - 28 if up else y + 28), "black", 2)
    return picture


def flag(rng: np.random.Generator) -> Image.Image:
    """Three stripes of the colours that flags have."""
    colours = ["#ce1126", "#002b7f", "#006847", "#ffffff", "#fcd116", "#000000", "#74acdf"]
    colours += ["#ff9933", "#4b0082", "#8d1b3d"]
    picture, draw = _canvas((360, 240))
    upright = rng.integers(2)
    for n, colour in enumerate(rng.choice(colours, 3, replace=False)):
        box = (120 * n, 0, 120 * n + 119, 239) if upright else (0, 80 * n, 359, 80 * n + 79)
        draw.rectangle(box, str(colour))
    return picture


def colour_card(rng: np.random.Generator) -> Image.Image:
    """One colour and its name, as shops of paint show it."""
    picture, draw = _canvas((300, 300), _colour(rng, 40, 250))
    draw.rectangle((0, 240, 300, 300), "white")
    draw.text((20, 270), _words(rng, 2), INK, _font(18), anchor="lm")
    return picture


def icon(rng: np.random.Generator) -> Image.Image:
    """Strokes on a disc."""
    picture, draw = _canvas((256, 256))
    draw.ellipse((28, 28, 228, 228), _colour(rng, 30, 200))
    points = [(int(x), int(y)) for x, y in rng.integers(80, 176, (5, 2))]
    draw.line(points, "white", 10, joint="curve")
    return picture


def equation(rng: np.random.Generator) -> Image.Image:
    picture, draw = _canvas((500, 200))
    terms = [f"{rng.integers(2, 99)}{rng.choice(list('xyzabn'))}" for _ in range(3)]
    text = f"{terms[0]} + {terms[1]} = {terms[2]}"
    draw.text((250, 100), text, "black", _font(38, "STIXGeneral"), anchor="mm")
    return picture


def sketch(rng: np.random.Generator) -> Image.Image:
    """A line drawing."""
    picture, draw = _canvas((360, 360))
    for _ in range(4):
        angles = np.linspace(0, 2 * np.pi, 60)
        waves = rng.normal(0, 12, 5) @ np.sin(np.arange(1, 6)[:, None] * angles + rng.uniform(0, 6))
        x, y = rng.integers(120, 240, 2)
        radius = rng.integers(30, 90) + waves
        points = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], -1)
        draw.line([tuple(point) for point in points.tolist()], "black", 3)
    return picture


def noise(rng: np.random.Generator) -> Image.Image:
    return _picture(128 + rng.normal(0, 30, (240, 320, 3)))


KINDS: dict[str, Callable[[np.random.Generator], Image.Image]] = {
    "quote cards": quote_card,
    "quotes on white": quote_on_white,
    "quotes in other fonts": quote_in_other_fonts,
    "a word on white": word_on_white,
    "a serif word on black": word_in_serif_on_black,
    "equations": equation,
    "logos": logo,
    "icons": icon,
    "products": product,
    "bottles on white": bottle_on_white,
    "skies": sky,
    "gradients": gradient,
    "sea and sky": sea_and_sky,
    "night": night,
    "moons": moon,
    "flags": flag,
    "colour cards": colour_card,
    "pages of text": page_of_text,
    "pages in serif": page_in_serif,
    "slides": slide,
    "screenshots": screenshot,
    "chats": chat,
    "bar charts": bar_chart,
    "line charts": line_chart,
    "pie charts": pie_chart,
    "street maps": street_map,
    "QR codes": qr_code,
    "bar codes": bar_code,
    "sheet music": sheet_music,
    "sketches": sketch,
    "noise": noise,
}


def _canvas(
    size: tuple[int, int], colour: object = "white"
) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    picture = Image.new("RGB", size, colour)  # type: ignore[arg-type]
    return picture, ImageDraw.Draw(picture)


def _picture(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _font(size: int, name: str | None = None) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if name is None:
        return ImageFont.load_default(size)
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), f"fonts/ttf/{name}.ttf")), size)


def _colour(rng: np.random.Generator, low: int, high: int) -> tuple[int, int, int]:
    red, green, blue = rng.integers(low, high, 3).tolist()
    return red, green, blue


def _words(rng: np.random.Generator, count: int) -> str:
    return " ".join(rng.choice(VOCABULARY.split(), count))


def _name(rng: np.random.Generator) -> str:
    return "".join(rng.choice(LETTERS, int(rng.integers(4, 9))))
