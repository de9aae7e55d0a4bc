# ruff: noqa: SIM905  (names, as a list of words)
"""Counts every operation on the fake device: kernels, bytes, FLOP, transfers, waits, collectives.
Tensors of the host stay real, so what packs and collates runs as in production."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from gpu_free import device

REPOSITORY = str(Path(__file__).resolve().parents[2]) + "/"
FRAMES = 2
MEMORY_EVERY = 20  # operations between looks at what is alive

# Operations that launch nothing.
VIEWS = set(
    """view _unsafe_view reshape _reshape_alias expand permute transpose t t_ slice select split
    split_with_sizes unbind unsqueeze squeeze detach alias as_strided diagonal chunk narrow unfold
    view_as lift_fresh empty empty_like empty_strided new_empty new_empty_strided resize_ set_
    is_pinned record_stream sym_size _has_compatible_shallow_copy_type""".split()
)
CONSTANTS = set(
    "zero_ fill_ zeros ones full zeros_like ones_like full_like arange new_zeros".split()
)
GATHERS = set("gather index index_select embedding take".split())
# Kernels of operations that launch several; sorted scatters take nine.
KERNELS = {
    "convolution_backward": 3, "native_batch_norm": 2, "native_batch_norm_backward": 2,
    "_native_batch_norm_legit": 2, "native_layer_norm_backward": 3, "logsumexp": 4, "nonzero": 4,
    "_scaled_dot_product_flash_attention_backward": 3,
    "_scaled_dot_product_efficient_attention_backward": 3, "_flash_attention_backward": 3,
    "_varlen_attn_backward": 3,
    "index_put_": 9, "_index_put_impl_": 9, "index_put": 10, "embedding_dense_backward": 9,
    "_fused_adamw_": 12,
}  # fmt: skip
SIZES_FROM_DEVICE = set("nonzero masked_select _unique2 unique_dim unique_consecutive".split())
VALUES_READ = set("_local_scalar_dense is_nonzero equal".split())
COPIES = set("_to_copy copy_ _copy_from".split())


@dataclass
class Count:
    """Of one kind of operation in one phase."""

    phase: str
    op: str
    dtype: str
    site: str
    ops: int = 0
    kernels: int = 0
    bytes: int = 0
    flop: int = 0


@dataclass
class Event:
    """Something that a GPU's user asks after: `kind` is one of

    sync: the host waits for the device; event: for an event; h2d, d2h: a transfer;
    wait: a stream waits for another; collective; attention: which kernel, with what mask.
    """

    kind: str
    phase: str
    site: str
    detail: str
    bytes: int = 0
    dtype: str = ""
    pinned: bool = False
    blocking: bool = False
    stream: str = ""
    later: bool = False  # a collective that the stream does not wait for at once
    bytes_before: int = 0  # that the device had moved by then


@dataclass
class Log:
    """All that recorders of one process noted."""

    counts: dict[tuple, Count] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    peak_bytes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    phases: Any = field(default_factory=threading.local)
    default_phase: str = "start"
    live: dict[int, tuple[Any, int]] = field(default_factory=dict)
    seen: int = 0
    moved: int = 0  # bytes of all operations
    graphs: list[int] = field(default_factory=list)  # kernels of each compiled graph

    @property
    def phase(self) -> str:
        return getattr(self.phases, "name", None) or self.default_phase

    @contextlib.contextmanager
    def during(self, name: str) -> Iterator[None]:
        """Note what this thread does as phase `name`."""
        before = getattr(self.phases, "name", None)
        self.phases.name = name
        try:
            yield
        finally:
            self.phases.name = before

    def clear(self) -> None:
        self.counts.clear()
        self.events.clear()
        self.peak_bytes.clear()
        self.moved = 0

    def note(self, kind: str, detail: str, **more: Any) -> None:
        self.events.append(
            Event(
                kind,
                self.phase,
                site(),
                detail,
                stream=device.current_stream().name,
                bytes_before=self.moved,
                **more,
            )
        )

    def count(self, op: str, dtype: str, kernels: int, size: int, flop: int, where: str) -> None:
        key = (self.phase, op, dtype, where)
        row = self.counts.get(key) or self.counts.setdefault(key, Count(*key))
        self.moved += size
        row.ops += 1
        row.kernels += kernels
        row.bytes += size
        row.flop += flop

    def keep(self, tensors: list[Tensor]) -> None:
        """Count what is alive on the device, at every few operations."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            known = self.live.get(storage._cdata)
            if known is None or known[0].expired():
                self.live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.seen += 1
        if self.seen % MEMORY_EVERY == 0:
            for key in [k for k, (reference, _) in self.live.items() if reference.expired()]:
                del self.live[key]
            total = sum(size for _, size in self.live.values())
            self.peak_bytes[self.phase] = max(self.peak_bytes[self.phase], total)

    def as_dict(self) -> dict[str, Any]:
        return {
            "counts": [asdict(count) for count in self.counts.values()],
            "events": [asdict(event) for event in self.events],
            "peak_bytes": dict(self.peak_bytes),
            "graphs": self.graphs,
        }


def site(limit: int = FRAMES) -> str:
    """The innermost lines of this repository, or of DeepSpeed where that is nearer."""
    found: list[str] = []
    frame = sys._getframe(1)
    while frame is not None and len(found) < limit:
        name = frame.f_code.co_filename
        if "/site-packages/" in name:
            if not found and "/deepspeed/" in name:
                found.append(f"deepspeed/{name.rsplit('/deepspeed/', 1)[1]}:{frame.f_lineno}")
        elif name.startswith(REPOSITORY) and "/gpu_free/" not in name:
            found.append(f"{name[len(REPOSITORY) :]}:{frame.f_lineno}")
        frame = frame.f_back  # type: ignore[assignment]
    return " < ".join(found) or "autograd"


def size_of(tensor: Tensor) -> int:
    """Bytes that a pass over `tensor` moves; an expanded dimension is read once."""
    size = tensor.element_size()
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        size *= 1 if stride == 0 else length
    return size


def on_device(values: Any) -> list[Tensor]:
    return [t for t in tree_leaves(values) if isinstance(t, Tensor) and t.device.type == "cuda"]


class Recorder(TorchDispatchMode):
    """Runs operations of the fake device and notes them in a log. One for each thread."""

    def __init__(self, log: Log, mode: FakeTensorMode) -> None:
        super().__init__()
        self.log, self.mode = log, mode

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        target = kwargs.get("device")
        made_there = target is not None and torch.device(target).type == "cuda"
        inputs = on_device((args, kwargs))
        if not inputs and not made_there:
            return func(*args, **kwargs)
        name = func._schema.name.split("::")[-1]
        if name in VALUES_READ:
            self.log.note("sync", f"value read ({name})")
        self._note(func, name, args, kwargs, inputs)
        if name in VALUES_READ:
            return False if inputs[0].dtype == torch.bool else 0
        if name == "copy_" and args[0].device.type == "cpu":
            return args[0].zero_()  # as good as what a fake tensor holds
        if func.namespace in ("c10d", "_c10d_functional") or name.startswith("_fused_adam"):
            out = func(*args, **kwargs) if func.namespace == "c10d" else None
        else:
            with self.mode:
                out = func(*args, **kwargs)
        outputs = on_device(out)
        self.log.keep(outputs)
        self._count(func, name, args, kwargs, inputs, outputs, out)
        return out

    def _note(self, func: Any, name: str, args: tuple, kwargs: dict, inputs: list[Tensor]) -> None:
        if name in SIZES_FROM_DEVICE:
            self.log.note("sync", f"size known to the device alone ({name})")
        indices = args[1] if name.startswith(("index", "_index")) and len(args) > 1 else ()
        if isinstance(indices, list | tuple) and any(
            isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in indices
        ):
            self.log.note("sync", f"boolean mask ({name})")
        if name in COPIES:
            source = args[1] if name == "copy_" else args[0]
            to = args[0].device if name == "copy_" else kwargs.get("device") or source.device
            later = args[2] if name == "copy_" and len(args) > 2 else kwargs.get("non_blocking")
            ends = (source.device.type, torch.device(to).type)
            if ends in (("cpu", "cuda"), ("cuda", "cpu")):
                host = source if ends[0] == "cpu" else args[0] if name == "copy_" else None
                self.log.note(
                    "h2d" if ends[1] == "cuda" else "d2h",
                    str(tuple(source.shape)),
                    bytes=source.numel() * source.element_size(),
                    dtype=str(source.dtype)[6:],
                    pinned=host is not None and host.is_pinned(),
                    blocking=not later,
                )
        if func.namespace in ("c10d", "_c10d_functional"):
            first = inputs[0] if inputs else None
            self.log.note(
                "collective",
                name.rstrip("_"),
                bytes=sum(size_of(t) for t in inputs),
                dtype=str(first.dtype)[6:] if first is not None else "",
                later="allreduce" in name and (len(args) < 5 or bool(args[4])),
            )

    def _count(
        self,
        func: Any,
        name: str,
        args: tuple,
        kwargs: dict,
        inputs: list[Tensor],
        outputs: list[Tensor],
        out: Any,
    ) -> None:
        if name in VIEWS or func.namespace not in ("aten", "prims", "torch_attn"):
            return
        if name in COPIES and any(
            t.device.type == "cpu" for t in tree_leaves(args) if isinstance(t, Tensor)
        ):
            return  # a transfer, noted above
        dtype = next((str(t.dtype)[6:] for t in inputs if t.is_floating_point()), "")
        size, kernels = moved_bytes(name, args, inputs, outputs), KERNELS.get(name, 1)
        if name.startswith(("_foreach", "_fused")):
            listed = args[0]
            kernels = 1 + len(listed) // 60 + sum(t.numel() for t in listed) // 20_000_000
        self.log.count(name, dtype, kernels, size, flop_of(func, args, kwargs, out), site())


def moved_bytes(name: str, args: tuple, inputs: list[Tensor], outputs: list[Tensor]) -> int:
    """Bytes that an operation reads and writes on the device."""
    unique = {id(t): t for t in [*inputs, *outputs]}.values()
    if name in CONSTANTS:
        return sum(size_of(t) for t in outputs)
    if name.startswith("_fused_adam"):  # weight, gradient and two moments; three are written
        return 7 * sum(size_of(t) for t in args[0])
    if name in GATHERS:  # what is taken is read, not the whole table
        return 2 * sum(size_of(t) for t in outputs) + sum(size_of(t) for t in inputs[1:])
    size = sum(size_of(t) for t in unique)
    if name.endswith("_"):
        written = args[0] if isinstance(args[0], list | tuple) else [args[0]]
        size += sum(size_of(t) for t in written if isinstance(t, Tensor))
    return size


def flop_of(func: Any, args: tuple, kwargs: dict, out: Any) -> int:
    """FLOP of products, convolutions and attention; 0 for all else."""
    name = func._schema.name.split("::")[-1]
    if "varlen" in name:
        return _varlen_flop(name, args)
    known = flop_registry.get(func._overloadpacket)
    return int(known(*args, **kwargs, out_val=out)) if known is not None else 0


def _varlen_flop(name: str, args: tuple) -> int:
    """Two products forward and five backward over texts as long as they are on average."""
    backward = "backward" in name
    query, bounds = (args[1], args[6]) if backward else (args[0], args[3])
    tokens, heads, width = query.shape
    texts = bounds.shape[0] - 1
    return int((5 if backward else 2) * 2 * heads * width * tokens * tokens / texts)


def attend(log: Log, mode: FakeTensorMode) -> Any:
    """`scaled_dot_product_attention` with the kernel that CUDA takes: flash knows no mask."""
    aten, original = torch.ops.aten, torch.nn.functional.scaled_dot_product_attention

    def attention(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if q.device.type != "cuda":
            return original(q, k, v, attn_mask, dropout_p, is_causal, scale=scale)
        if torch.is_autocast_enabled("cuda"):
            q, k, v = (t.to(torch.get_autocast_dtype("cuda")) for t in (q, k, v))
        flash = attn_mask is None and q.dtype in (torch.float16, torch.bfloat16)
        if not torch.compiler.is_compiling():
            mask = "" if attn_mask is None else f" mask {tuple(attn_mask.shape)}"
            name = "flash" if flash else "efficient"
            log.note("attention", f"{name} {tuple(q.shape)} x {k.shape[-2]}{mask}")
        if flash:
            return aten._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal)[0]
        bias, keys = None, k.shape[-2]
        if attn_mask is not None:
            bias = torch.zeros_like(attn_mask, dtype=q.dtype)
            bias = bias.masked_fill(attn_mask.logical_not(), float("-inf"))
            if keys % 16:  # the kernel reads rows of aligned length
                bias = torch.nn.functional.pad(bias, (0, 16 - keys % 16))[..., :keys]
            bias = bias.expand(q.shape[0], q.shape[1], q.shape[-2], keys)
        return aten._scaled_dot_product_efficient_attention(q, k, v, bias, True, 0.0, is_causal)[0]

    return attention
