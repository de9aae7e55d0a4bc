# ruff: noqa: SIM905  (names, as a list of words)
"""What torch.compile makes of a graph, by a rule: a backend that counts kernels and runs none.
Between `torch.compile` in a counted step and the recorder's log."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from gpu_free.recorder import KERNELS, VIEWS, Log, flop_of, size_of

# Library calls and scatters; all else becomes part of a generated kernel.
EXTERN = set(
    """mm addmm bmm baddbmm convolution convolution_backward index_put index_put_ _unsafe_index_put
    scatter scatter_add scatter_reduce sort topk cumsum embedding_dense_backward
    _scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_backward
    _scaled_dot_product_efficient_attention _scaled_dot_product_efficient_attention_backward
    _varlen_attn _varlen_attn_backward _flash_attention_forward _flash_attention_backward""".split()
)
SCATTERS = {"index_put", "index_put_", "_unsafe_index_put", "scatter", "scatter_add"}
SCATTER_KERNELS = 2  # zeros and atomic sums, without the sort of the eager operation
TAKES = {"index", "_unsafe_index", "embedding", "gather", "index_select"}
REDUCTIONS = {"sum", "mean", "amax", "amin", "var_mean", "var", "argmax", "argmin", "any", "prod"}


@dataclass(frozen=True)
class Kernel:
    """One launch, or the launches of one library call."""

    op: str
    dtype: str
    kernels: int
    bytes: int
    flop: int
    attention: str = ""


def kernels_of(graph: fx.Graph) -> list[Kernel]:
    """The kernels of a functional graph of aten operations, as a compiler that fuses would make
    them.

    Operations between two library calls that read each other's results are one kernel: it reads
    once what comes from outside and writes what is read outside. A reduction over other than the
    last dimensions is one more, and reads its input again. Neighbours that only share an input
    stay apart, and what Inductor computes twice to save memory is written here: both cost more
    than in its own code.
    """
    return _Fused(graph).kernels()


class _Fused:
    def __init__(self, graph: fx.Graph) -> None:
        self.nodes = [n for n in graph.nodes if n.op == "call_function"]
        self.parent: dict[fx.Node, fx.Node] = {}
        self.stage: dict[fx.Node, int] = defaultdict(int)
        self.columns = {n for n in self.nodes if _is_column_reduction(n)}
        self.fused = [n for n in self.nodes if not self.is_alias(n) and _name(n) not in EXTERN]
        inside = set(self.fused)
        for node in self.nodes:
            for source in map(self.root, node.all_input_nodes):
                after = source.op == "call_function" and (
                    source not in inside or source in self.columns
                )
                self.stage[node] = max(self.stage[node], self.stage[source] + after)
        for node in self.fused:
            for source in map(self.root, node.all_input_nodes):
                if source in inside and self.stage[source] == self.stage[node]:
                    self.parent[self.find(node)] = self.find(source)

    def is_alias(self, node: fx.Node) -> bool:
        return _name(node) in VIEWS or _name(node) == "getitem"

    def root(self, node: fx.Node) -> fx.Node:
        """The node whose memory a view shows; of a call with several outputs, that output."""
        while node.op == "call_function" and self.is_alias(node):
            if _name(node) == "getitem" and _name(node.all_input_nodes[0]) in EXTERN:
                return node.all_input_nodes[0]
            if not node.all_input_nodes or _name(node) in {"empty", "empty_strided"}:
                return node
            node = node.all_input_nodes[0]
        return node

    def find(self, node: fx.Node) -> fx.Node:
        while self.parent.get(node, node) is not node:
            node = self.parent[node]
        return node

    def kernels(self) -> list[Kernel]:
        groups: dict[fx.Node, set[fx.Node]] = defaultdict(set)
        for node in self.fused:
            groups[self.find(node)].add(node)
        made = [self.library_call(n) for n in self.nodes if _name(n) in EXTERN]
        return made + [k for k in map(self.group, groups.values()) if k.bytes]

    def group(self, members: set[fx.Node]) -> Kernel:
        read: dict[fx.Node, int] = {}
        for node in members:
            takes = _name(node) in TAKES
            for position, source in enumerate(node.all_input_nodes):
                root = self.root(source)
                if root in members:
                    continue
                size = _bytes(node) if takes and position == 0 else _bytes(source)
                read[root] = max(read.get(root, 0), size)
        written = sum(_bytes(n) for n in members if self.leaves(n, members))
        columns = [n for n in members if n in self.columns]
        again = sum(_bytes(n.all_input_nodes[0]) for n in columns)
        largest = max(members, key=_bytes)
        launches = 1 + len(columns)
        return Kernel("fused", _dtype(largest), launches, sum(read.values()) + written + again, 0)

    def leaves(self, node: fx.Node, members: set[fx.Node]) -> bool:
        """Whether something outside the kernel reads `node`, itself or by a view."""
        for user in node.users:
            if user.op == "output":
                return True
            if self.is_alias(user):
                if self.leaves(user, members):
                    return True
            elif user not in members:
                return True
        return False

    def library_call(self, node: fx.Node) -> Kernel:
        values = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
        args, kwargs = values
        out = node.meta["val"]
        name = _name(node)
        seen = {id(t): t for t in _tensors(values) + _tensors(out)}
        size = sum(size_of(t) for t in seen.values())
        kernels = SCATTER_KERNELS if name in SCATTERS else KERNELS.get(name, 1)
        attention = ""
        if "attn" in name or ("attention" in name and "backward" not in name):
            attention = f"{name.strip('_')} {tuple(args[0].shape)}"
            if "efficient" in name and len(args) > 3 and args[3] is not None:
                attention += f" mask {tuple(args[3].shape)}"
        flop = flop_of(node.target, tuple(args), dict(kwargs), out)
        dtypes = [str(t.dtype)[6:] for t in _tensors(values) if t.is_floating_point()]
        return Kernel(name, dtypes[0] if dtypes else "", kernels, size, flop, attention)


def _name(node: fx.Node) -> str:
    if node.op != "call_function":
        return node.op
    schema = getattr(node.target, "_schema", None)
    return schema.name.split("::")[-1] if schema else getattr(node.target, "__name__", "")


def _tensors(values: Any) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(values) if isinstance(t, Tensor)]


def _bytes(node: fx.Node) -> int:
    return sum(size_of(t) for t in _tensors(node.meta.get("val")))


def _dtype(node: fx.Node) -> str:
    tensors = _tensors(node.meta.get("val"))
    return str(tensors[0].dtype)[6:] if tensors else ""


def _is_column_reduction(node: fx.Node) -> bool:
    """A reduction that leaves a later dimension: rows of memory are summed up, not along."""
    if _name(node) not in REDUCTIONS or len(node.args) < 2 or not node.all_input_nodes:
        return False
    value = node.all_input_nodes[0].meta.get("val")
    if not isinstance(value, Tensor) or not value.dim():
        return False
    dims = node.args[1] if isinstance(node.args[1], list | tuple) else [node.args[1]]
    if not all(isinstance(d, int) for d in dims) or not dims:
        return False
    return value.dim() - 1 not in {d % value.dim() for d in dims}  # type: ignore[operator]


def counting_backend(log: Log, mode: FakeTensorMode) -> Callable:
    """A backend of torch.compile whose graphs note their fused kernels when they run, and give
    fake tensors of the shapes that they would."""
    from functorch.compile import min_cut_rematerialization_partition
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.aot_autograd import make_boxed_func
    from torch._inductor.decomposition import select_decomp_table

    def compiler(module: fx.GraphModule, inputs: list[Any]) -> Callable:
        kernels = kernels_of(module.graph)
        log.graphs.append(len(kernels))
        (end,) = (node for node in module.graph.nodes if node.op == "output")
        outputs = [n.meta["val"] if isinstance(n, fx.Node) else n for n in end.args[0]]

        def run(*args: Any) -> Any:
            for kernel in kernels:
                log.count(
                    kernel.op, kernel.dtype, kernel.kernels, kernel.bytes, kernel.flop, "compiled"
                )
                if kernel.attention:
                    log.note("attention", kernel.attention)
            with mode:
                out = tuple(_made(value) for value in outputs)
            log.keep([t for t in _tensors(out) if t.device.type == "cuda"])
            return out

        return make_boxed_func(run)

    return aot_autograd(
        fw_compiler=compiler,
        bw_compiler=compiler,
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )


def _made(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
