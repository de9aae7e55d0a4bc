"""A CUDA device that computes nothing: torch without CUDA takes its fake tensors for real ones.
Installed once in a process of its own, ahead of everything that asks torch for a device."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SOURCE = Path(__file__).with_name("device.cpp")
MAIN, NAME = "main", "NVIDIA H100 80GB HBM3"
_current = threading.local()  # the stream of each thread


def compiler() -> str | None:
    """The C++ compiler that builds the device; None: this machine has none."""
    return shutil.which("g++")


def load_library() -> ctypes.CDLL:
    """The shared library of `device.cpp`, compiled once for each source and version of torch."""
    found = importlib.util.find_spec("torch")
    assert found is not None
    assert found.origin is not None
    root = Path(found.origin).parent
    needed = ["c10", "torch_cpu"]
    key = hashlib.sha256(SOURCE.read_bytes() + version("torch").encode()).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"caft-fake-cuda-{os.getuid()}-{key}.so"
    if not library.exists():
        made = library.with_suffix(f".{os.getpid()}")
        command = [compiler() or "g++", "-O1", "-shared", "-fPIC", "-std=c++20"]
        command += [f"-I{root / 'include'}", "-o", str(made), str(SOURCE)]
        command += [f"-L{root / 'lib'}", *(f"-l{name}" for name in needed)]
        subprocess.run(command, check=True)
        made.rename(library)
    # By their own paths: the file may have been compiled for another checkout's torch.
    for name in needed:
        ctypes.CDLL(str(root / "lib" / f"lib{name}.so"), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(library))


# Ahead of torch, which asks once whether there is a device.
_library = load_library()


class FakeStream:
    """A stream by name; waits are noted, since the host would stand still."""

    device_index, device_type, stream_id, cuda_stream = 0, 1, 0, 0

    def __init__(self, name: str, note: Any) -> None:
        import torch

        self.name, self._note = name, note
        self.device = torch.device("cuda", 0)

    def synchronize(self) -> None:
        self._note("sync", "stream.synchronize")

    def wait_stream(self, other: FakeStream) -> None:
        self._note("wait", f"{self.name} for {other.name}")

    def wait_event(self, event: Any) -> None:
        self._note("wait", f"{self.name} for an event")

    def record_event(self, event: Any = None) -> Any:
        import torch

        return event or torch.cuda.Event()

    def query(self) -> bool:
        return True


def current_stream(*_: Any) -> Any:
    return getattr(_current, "stream", None) or _main_stream


_main_stream: Any = None


@contextlib.contextmanager
def _stream(stream: Any) -> Iterator[None]:
    before = current_stream()
    _current.stream = stream or before
    try:
        yield
    finally:
        _current.stream = before


def install(note: Any) -> None:
    """Make torch believe in one GPU; `note(kind, detail)` hears of what a host waits for."""
    import torch

    _library.install_guard()
    global _main_stream
    _main_stream = FakeStream(MAIN, note)

    class Event:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def record(self, *_: Any) -> None: ...

        def wait(self, *_: Any) -> None: ...

        def query(self) -> bool:
            return True

        def synchronize(self) -> None:
            note("event", "event.synchronize")

        def elapsed_time(self, _: Any) -> float:
            return 1.0

    properties = SimpleNamespace(
        name=NAME,
        major=9,
        minor=0,
        total_memory=80 * 2**30,
        multi_processor_count=132,
        warp_size=32,
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=2048,
        L2_cache_size=50 * 2**20,
        gcnArchName="",
        is_integrated=0,
    )
    nothing = {
        "set_device", "reset_peak_memory_stats", "empty_cache", "_lazy_init", "init",
        "set_rng_state", "manual_seed", "manual_seed_all",
    }  # fmt: skip
    cuda: Any = torch.cuda
    for name in nothing:
        setattr(cuda, name, lambda *_, **__: None)
    for name in ("range_push", "range_pop"):
        setattr(cuda.nvtx, name, lambda *_: None)
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved", "current_device"):
        setattr(cuda, name, lambda *_: 0)
    cuda.max_memory_reserved = cuda.memory_allocated
    for name in ("is_available", "is_initialized", "is_bf16_supported"):
        setattr(cuda, name, lambda *_, **__: True)
    cuda.device_count = lambda: 1
    cuda.synchronize = lambda *_, **__: note("sync", "torch.cuda.synchronize")
    cuda.current_stream = cuda.default_stream = current_stream
    cuda.Stream = lambda *_, **__: FakeStream("side", note)
    cuda.stream = _stream
    cuda.Event = Event
    cuda.get_device_name = lambda *_: NAME
    cuda.get_device_properties = cuda._get_device_properties = lambda *_: properties
    cuda.get_device_capability = lambda *_: (9, 0)
    cuda.get_rng_state = lambda *_: torch.zeros(16, dtype=torch.uint8)
    cuda.is_current_stream_capturing = lambda: False
    cuda.default_generators = (torch.Generator(),)
    cuda.device = lambda *_: contextlib.nullcontext()
    torch.version.cuda = "13.0"
    torch.Tensor.record_stream = lambda self, stream: None  # type: ignore[method-assign]
    import torch.amp.autocast_mode as autocast

    autocast.torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    # Parameters move to the device as new tensors, and lists of fake tensors are worked on together
    # as those of real ones are.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    import torch.utils._foreach_utils as foreach

    foreach._foreach_supported_types.append(_fake_tensor_type())


def _fake_tensor_type() -> type:
    from torch._subclasses.fake_tensor import FakeTensor

    return FakeTensor
