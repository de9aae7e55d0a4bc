"""A page on this machine: an image, sentences of one's own, and where each of them looks.
Run as `caft demo [CHECKPOINT]`; without one it shows the demo's own model, on drawn scenes."""

from __future__ import annotations

import argparse
import base64
import binascii
import json
import sys
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import torch

from caft.captions import split_sentences
from caft.checkpoint import load_model
from caft.errors import CAFTError, CheckpointError, ClusterError, DataError
from caft.heat_maps import (
    encode_one,
    encode_sentences,
    heat_maps,
    heat_on,
    labels_on,
    segment_hierarchy,
)
from caft.inputs import picture_pixels
from caft.model import CAFT
from caft.pictures import data_url, draw_borders, draw_heat, draw_hierarchy, to_canvas
from caft.preprocessing import Picture
from pipelines.demo.sample import TEST_SEED_OFFSET
from pipelines.demo.scenes import SceneConfig, render_scene

REPOSITORY = Path(__file__).resolve().parents[2]
# What `make demo` trained here, else what it trained for the documentation.
MODELS = (Path("runs/demo/train/final"), REPOSITORY / "docs" / "assets" / "demo-model")
PAGE = Path(__file__).with_name("page.html")
LOOPBACK = "127.0.0.1"
SCENES = 6  # of those that no training sees
MOST_BYTES = 24 * 2**20  # of a question, its image included
MOST_SENTENCES = 24
# Nothing is loaded from elsewhere, and the page runs no script but its own.
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Looker:
    """A model and the scenes that it is shown on; answers one question at a time."""

    def __init__(self, model: CAFT, place: str) -> None:
        self.model, self.place = model.eval(), place
        self._one_at_a_time = threading.Lock()
        drawn = [render_scene(TEST_SEED_OFFSET + n, SceneConfig()) for n in range(SCENES)]
        self.scenes = [scene.image for scene in drawn]
        self.captions = [scene.caption for scene in drawn]
        with torch.inference_mode():
            self._features = model.encode_image(list(self.scenes))

    def start(self) -> dict[str, Any]:
        """What the page shows before anything is asked."""
        scenes = [data_url(to_canvas(image)) for image in self.scenes]
        return {"model": self.place, "scenes": scenes, "captions": self.captions}

    @torch.inference_mode()
    def look(self, picture: Picture, text: str) -> dict[str, Any]:
        """Pictures of what the model sees in an image, and how well the text fits each scene.

        Raises:
            DataError: no sentence, too many, or nothing that can be read as a picture.
        """
        sentences = split_sentences(text)
        if not 1 <= len(sentences) <= MOST_SENTENCES:
            raise DataError(f"write 1 to {MOST_SENTENCES} sentences; these are {len(sentences)}")
        with self._one_at_a_time:
            model, rule = self.model, self.model.config.image.preprocess
            pixels = picture_pixels(picture, rule)
            features = encode_one(model, pixels)
            canvas = to_canvas(pixels)
            cut = labels_on(canvas, features.superpixels[0].cpu().numpy(), rule)
            levels = [labels[0].cpu().numpy() for labels in segment_hierarchy(features)]
            fitted = [labels_on(canvas, labels, rule) for labels in levels]
            seen = [("superpixels", draw_borders(canvas, cut))]
            names = [f"{len(set(labels.flat) - {-1})} segments" for labels in levels]
            seen += list(zip(names, draw_hierarchy(canvas, fitted), strict=True))
            heats = heat_maps(model, features, encode_sentences(model, sentences))
            where = [
                (sentence, draw_heat(canvas, heat_on(canvas, heat, rule), None))
                for sentence, heat in zip(sentences, heats, strict=True)
            ]
            scores = model.score(self._features, model.encode_text([text]))[:, 0].tolist()
        return {
            "where": [[words, data_url(image)] for words, image in where],
            "seen": [[words, data_url(image)] for words, image in seen],
            "ranking": sorted(range(SCENES), key=lambda n: -scores[n]),
        }


class Handler(BaseHTTPRequestHandler):
    """The page and its questions, for browsers on this machine and no other origin."""

    protocol_version = "HTTP/1.1"
    looker: Looker

    def do_GET(self) -> None:
        if not self._is_ours():
            return
        if self.path == "/":
            self._answer(200, PAGE.read_bytes(), "text/html; charset=utf-8")
        elif self.path == "/start":
            self._say(200, self.looker.start())
        else:
            self._say(404, {"error": "no such page"})

    def do_POST(self) -> None:
        if not self._is_ours():
            return
        size = int(self.headers.get("Content-Length") or 0)
        # JSON is what a page of another origin cannot send without asking first.
        if self.headers.get_content_type() != "application/json" or not 0 < size <= MOST_BYTES:
            self.close_connection = True  # the body is not read
            self._say(413, {"error": f"an image and its sentences have at most {MOST_BYTES} bytes"})
            return
        try:
            self._say(200, self._look(json.loads(self.rfile.read(size))))
        except (CAFTError, ValueError, KeyError, TypeError, IndexError, binascii.Error) as error:
            words = str(error) if isinstance(error, CAFTError) else "this cannot be read"
            self._say(400, {"error": words})

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not worth a line each."""

    def _look(self, asked: dict[str, Any]) -> dict[str, Any]:
        given = asked["picture"]
        if isinstance(given, str):
            return self.looker.look(base64.b64decode(given, validate=True), str(asked["text"]))
        return self.looker.look(self.looker.scenes[int(given)], str(asked["text"]))

    def _is_ours(self) -> bool:
        """Whether the request names this machine: a stranger's name that leads here is refused."""
        host = (self.headers.get("Host") or "").rsplit(":", 1)[0]
        if host in (LOOPBACK, "localhost"):
            return True
        self.close_connection = True
        self._say(403, {"error": "ask for 127.0.0.1"})
        return False

    def _say(self, status: int, words: dict[str, Any]) -> None:
        self._answer(status, json.dumps(words).encode(), "application/json")

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)


def make_page(checkpoint: str | None, port: int) -> ThreadingHTTPServer:
    """A server on loopback; `serve_forever` shows the page. Port 0: any free one.

    Raises:
        CheckpointError: no such checkpoint, or one that cannot be loaded.
        ClusterError: the port is in use.
    """
    place = next((path for path in MODELS if (path / "manifest.json").exists()), None)
    if checkpoint is None and place is None:
        raise CheckpointError("no trained model here: run `make demo`, or name a checkpoint")
    chosen = checkpoint or str(place)
    handler = type("PageHandler", (Handler,), {"looker": Looker(load_model(chosen), chosen)})
    try:
        return ThreadingHTTPServer((LOOPBACK, port), handler)
    except OSError:
        raise ClusterError(f"port {port} is in use; choose another with --port") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Console entry."""
    parser = argparse.ArgumentParser(prog="caft demo", description=__doc__)
    parser.add_argument("checkpoint", nargs="?", help="its folder or file; none: the demo's model")
    parser.add_argument("--port", type=int, default=7860)
    args = parser.parse_args(argv)
    cv2.setNumThreads(1)
    try:
        server = make_page(args.checkpoint, args.port)
    except CAFTError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    handler = server.RequestHandlerClass
    print(f"demo: {getattr(handler, 'looker').place}", flush=True)  # noqa: B009
    print(f"demo: http://{LOOPBACK}:{server.server_port}  (Ctrl-C ends it)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
