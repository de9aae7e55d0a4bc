"""Serves the demo's sample over HTTP on loopback, with the faults that real lists meet.
Run as `python -m pipelines.demo.server FOLDER --port N`."""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from caft.errors import CAFTError, ClusterError

SLOW_S = 60.0


class SampleHandler(SimpleHTTPRequestHandler):
    """Files of one folder, and below /faults/ an answer that is wrong on purpose."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        fault = FAULT_ANSWERS.get(self.path)
        if fault is None:
            super().do_GET()
        else:
            fault(self)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not worth a line each."""

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    @property
    def port(self) -> int:
        assert isinstance(self.server, ThreadingHTTPServer)
        return self.server.server_port

    def some_photograph(self) -> bytes:
        return next(Path(self.directory, "photographs").glob("*.jpg")).read_bytes()


def _truncated(request: SampleHandler) -> None:
    photograph = request.some_photograph()
    request.answer(200, photograph[: len(photograph) // 2], Content_Type="image/jpeg")


def _slow(request: SampleHandler) -> None:
    time.sleep(SLOW_S)
    request.close_connection = True


FAULT_ANSWERS: dict[str, Callable[[SampleHandler], None]] = {
    "/faults/gone.jpg": lambda r: r.answer(410, b"gone"),
    "/faults/broken-server.jpg": lambda r: r.answer(500, b"sorry"),
    "/faults/truncated.jpg": _truncated,
    "/faults/page.jpg": lambda r: r.answer(
        200, b"<html><body>Please log in.</body></html>", Content_Type="image/jpeg"
    ),
    "/faults/slow.jpg": _slow,
    "/faults/forbidden.jpg": lambda r: r.answer(
        200, r.some_photograph(), X_Robots_Tag="noai", Content_Type="image/jpeg"
    ),
    "/faults/inside.jpg": lambda r: r.answer(
        302, b"", Location=f"http://localhost:{r.port}/scenes_train.csv"
    ),
}


class SampleServer(ThreadingHTTPServer):
    """Takes many connections at a time: a short queue makes clients wait for a second try."""

    request_queue_size = 256


def make_server(folder: Path, port: int) -> ThreadingHTTPServer:
    """A server on 127.0.0.1, not yet serving; port 0 picks a free one.

    Raises:
        ClusterError: the port is in use.
    """
    handler = functools.partial(SampleHandler, directory=str(folder))
    try:
        return SampleServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise ClusterError(
            f"port {port} for the sample server: {error.strerror}; choose another with "
            "--sample-port"
        ) from None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.demo.server", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args(argv)
    try:
        make_server(args.folder, args.port).serve_forever()
    except CAFTError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
