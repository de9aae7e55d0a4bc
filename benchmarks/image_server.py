"""A set of web-like images and a lean HTTP server for it, for the benchmarks of the data stage.

Images are crops of the demo's photographs in mixed sizes and formats; six in a hundred are broken.
The server holds them all in memory, so that what is measured is the client.

    python benchmarks/image_server.py --images 3000 --port 8950
"""

from __future__ import annotations

import argparse
import asyncio
import io
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

PHOTOGRAPHS = Path(__file__).parents[1] / "pipelines" / "demo" / "photographs"
# Longest sides and formats with their shares, near what lists of web images hold.
SIDES = {320: 0.1, 500: 0.2, 640: 0.25, 800: 0.15, 1024: 0.2, 1600: 0.1}
FORMATS = {"JPEG": 0.88, "PNG": 0.05, "WEBP": 0.05, "GIF": 0.02}
# Kinds of broken answers, one in a hundred each.
BROKEN = ("missing", "failing", "truncated", "page", "empty", "noise")


def make_image(number: int) -> bytes:
    """One of the set's images: a random crop of a photograph, resized and encoded."""
    rng = np.random.default_rng(number)
    files = sorted(PHOTOGRAPHS.glob("*.jpg"))
    with Image.open(files[number % len(files)]) as photograph:
        width, height = photograph.size
        share = rng.uniform(0.5, 0.95)
        left, top = rng.uniform(0, 1 - share, 2)
        box = (left * width, top * height, (left + share) * width, (top + share) * height)
        crop = photograph.convert("RGB").crop(tuple(map(int, box)))
    side = int(rng.choice(list(SIDES), p=list(SIDES.values())))
    scale = side / max(crop.size)
    crop = crop.resize((round(crop.width * scale), round(crop.height * scale)), Image.LANCZOS)
    # Fine grain, so that enlarged photographs cost as many bytes as sharp ones.
    grain = rng.normal(0, 4, (crop.height, crop.width, 1))
    crop = Image.fromarray(np.clip(np.asarray(crop) + grain, 0, 255).astype(np.uint8))
    kind = str(rng.choice(list(FORMATS), p=list(FORMATS.values())))
    buffer = io.BytesIO()
    crop.save(buffer, kind, **({"quality": 87} if kind in ("JPEG", "WEBP") else {}))
    return buffer.getvalue()


def answer(number: int) -> bytes:
    """The whole HTTP answer for image `number`."""
    body, status = make_image(number), "200 OK"
    place = number % 100
    if place < len(BROKEN):
        match BROKEN[place]:
            case "missing":
                body, status = b"gone", "404 Not Found"
            case "failing":
                body, status = b"sorry", "503 Service Unavailable"
            case "truncated":
                body = body[: len(body) // 2]
            case "page":
                body = b"<html><body>Log in to see this picture.</body></html>"
            case "empty":
                body = b""
            case "noise":
                body = np.random.default_rng(number).bytes(20_000)
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nContent-Type: image/jpeg\r\n\r\n"
    return head.encode() + body


class ImageProtocol(asyncio.Protocol):
    """Answers /N, with anything after a question mark ignored, and 404 to every other path."""

    def __init__(self, answers: list[bytes]) -> None:
        self._answers = answers
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, self._received = self._received.split(b"\r\n\r\n", 1)
            path = head.split(b" ", 2)[1].split(b"?")[0].strip(b"/")
            known = path.isdigit() and int(path) < len(self._answers)
            self._transport.write(self._answers[int(path)] if known else NOT_FOUND)
            if b"connection: close" in head.lower():
                self._transport.close()


NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


async def serve(answers: list[bytes], port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: ImageProtocol(answers), "127.0.0.1", port, backlog=1024
    )
    await server.serve_forever()


@contextmanager
def image_server(images: int, port: int) -> Iterator[str]:
    """A running server in its own process; its base URL."""
    command = [sys.executable, __file__, "--images", str(images), "--port", str(port)]
    process = subprocess.Popen(command)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                urllib.request.urlopen(f"{url}/{len(BROKEN)}").read()
                break
            except OSError:
                if process.poll() is not None:
                    raise SystemExit(f"the image server ended with {process.returncode}") from None
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--port", type=int, default=8950)
    args = parser.parse_args()
    with ProcessPoolExecutor() as pool:
        made = list(pool.map(answer, range(args.images), chunksize=50))
    asyncio.run(serve(made, args.port))
