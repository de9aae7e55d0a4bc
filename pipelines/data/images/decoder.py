"""Decoding in a process of its own: an image that breaks the decoder costs its own row alone.
The chunk step holds one `Decoder` per worker; both ends of its pipe are in this file."""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from types import SimpleNamespace, TracebackType
from typing import TYPE_CHECKING, Any

from pipelines.data.images.prepare import ImageRefused

if TYPE_CHECKING:
    from pipelines.data.config import ImageConfig

START_TIMEOUT_S, STOP_TIMEOUT_S = 60.0, 2.0
START_TRIES = 3
TRIES = 2  # a process may be killed for another's sins, such as a full memory
# Address space for libraries, and for as many copies of a picture as decoding holds at a time.
MEMORY_BYTES = 2**30
MEMORY_BYTES_PER_PIXEL = {"caft": 24, "img2dataset": 96}  # img2dataset's alpha is in float64
# Named, for only the child imports them: img2dataset's packages take seconds and much memory.
RESIZERS = {
    "caft": "pipelines.data.images.prepare:prepare_image",
    "img2dataset": "pipelines.data.images.img2dataset_resizer:prepare_image",
}

Prepare = Callable[[bytes, Any], dict[str, Any]]


class Decoder:
    """`prepare_image` of the resizer in a child process, replaced where an image ends or stalls it.

    Args:
        prepare: another function of a module, of encoded bytes and an `ImageConfig`'s values as
            attributes. It returns values that JSON has, and bytes.

    One image at a time. The child has one thread and a bounded address space, and ends with its
    parent, an image that it is at after `decode_timeout_s` at the latest.
    """

    def __init__(self, config: ImageConfig, prepare: Prepare | None = None) -> None:
        self._config = config
        self._target = RESIZERS[config.resizer]
        if prepare is not None:
            self._target = f"{prepare.__module__}:{prepare.__qualname__}"
        self._child: _Child | None = None

    def __enter__(self) -> Decoder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def prepare(self, data: bytes) -> dict[str, Any]:
        """What `prepare` returns for one image.

        Raises:
            ImageRefused: as `prepare` does; 'decoder_crash' if the image ends the child twice, or
                once takes longer than `decode_timeout_s`.
            DataError: the child does not start.
        """
        for _ in range(TRIES):
            try:
                return self._ask(data)
            except (EOFError, OSError):
                ending = self._stop()
                if ending == -signal.SIGALRM:
                    detail = f"not done after {self._config.decode_timeout_s:g} s"
                    raise ImageRefused("decoder_crash", detail) from None
            except BaseException as error:
                if not isinstance(error, ImageRefused):
                    self._stop()  # its answer may be on its way, and would be taken for the next
                raise
        raise ImageRefused("decoder_crash", _ending_text(ending))

    def _ask(self, data: bytes) -> dict[str, Any]:
        if self._child is None:
            self._child = self._start()
        pipe = self._child.pipe
        pipe.send_bytes(data)
        reply = json.loads(pipe.recv_bytes())
        if "refused" in reply:
            raise ImageRefused(*reply["refused"])
        row: dict[str, Any] = reply["row"]
        row |= {name: bytes.fromhex(value) for name, value in reply["bytes"].items()}
        if reply["image"] == "same":  # it need not travel twice
            row["image"] = data
        elif reply["image"] == "follows":
            row["image"] = pipe.recv_bytes()
        return row

    def _start(self) -> _Child:
        from caft.errors import DataError  # the child has this file too, and no time for torch

        for _ in range(START_TRIES - 1):
            with suppress(DataError):
                return _Child(self._config, self._target)
        return _Child(self._config, self._target)

    def _stop(self) -> int:
        """End the child if there is one; returns its exit code as `subprocess` counts them."""
        child, self._child = self._child, None
        return child.stop() if child else 0


class _Child:
    """A running child and this end of its pipe."""

    def __init__(self, config: ImageConfig, target: str) -> None:
        self.pipe, other = Pipe()
        values = config.model_dump_json()
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        path = {"PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}
        command = [sys.executable, "-m", __name__, str(other.fileno()), target, values]
        with other:
            self._process = subprocess.Popen(
                command,
                env=os.environ | threads | path,
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        if not (self.pipe.poll(START_TIMEOUT_S) and self._says_ready()):
            from caft.errors import DataError

            ending = _ending_text(self.stop())
            raise DataError(f"decoding process: does not start: {ending}; see the worker's log")

    def stop(self) -> int:
        self.pipe.close()
        try:
            return self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _says_ready(self) -> bool:
        try:
            return self.pipe.recv_bytes() == b"ready"
        except (EOFError, OSError):
            return False


def _ending_text(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def _serve(pipe: Connection, target: str, config: SimpleNamespace) -> None:
    """The child: images in, answers out, until the parent closes its end."""
    _confine(config)
    module, name = target.split(":")
    prepare = getattr(importlib.import_module(module), name)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders print a line per damaged image
    pipe.send_bytes(b"ready")
    while True:
        data = pipe.recv_bytes()
        signal.setitimer(signal.ITIMER_REAL, config.decode_timeout_s)
        reply: dict[str, Any]
        image = b""
        try:
            row = prepare(data, config)
        except ImageRefused as refusal:
            reply = {"refused": refusal.args}
        except Exception as error:
            reply = {"refused": ("decoder_crash", f"{type(error).__name__}: {error}")}
        else:
            how = "none"
            if "image" in row:
                image = row.pop("image")
                how = "same" if image == data else "follows"
            packed = {name: v.hex() for name, v in row.items() if isinstance(v, bytes)}
            row = {name: value for name, value in row.items() if name not in packed}
            reply = {"row": row, "bytes": packed, "image": how}
        signal.setitimer(signal.ITIMER_REAL, 0)
        pipe.send_bytes(json.dumps(reply).encode())
        if reply.get("image") == "follows":
            pipe.send_bytes(image)


def _confine(config: SimpleNamespace) -> None:
    """Take from this process what an image could use to harm others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what ends on Ctrl-C
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends it, whatever C code is doing
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    memory = MEMORY_BYTES + MEMORY_BYTES_PER_PIXEL[config.resizer] * config.max_pixels
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import cv2

    cv2.setNumThreads(1)


if __name__ == "__main__":
    descriptor, named, values = sys.argv[1:]
    with suppress(EOFError, OSError):  # the parent is gone
        _serve(Connection(int(descriptor)), named, SimpleNamespace(**json.loads(values)))
