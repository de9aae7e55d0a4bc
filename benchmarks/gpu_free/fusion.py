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
MOST_READS, MOST_OPERATIONS = 4, 30  # of what is computed again, as Inductor's defaults have it
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
    once what comes from outside and writes what is read outside. What is cheap to compute from few
    tensors is never written for another kernel, which computes it again, as Inductor has it. A
    reduction over other than the last dimensions is one more kernel, and reads its input again,
    unless the same kernel reduces along the last one: Inductor reduces both ways in one pass.
    Neighbours that only share an input stay apart, which costs more than in its own code.
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
        self.cheap = self._cheap()
        stored = self._read_by_calls()
        while True:  # what a kernel computes again makes it read, and others store, other tensors
            found = [self.group(members, stored) for members in groups.values()]
            needed = stored.union(*(reads.keys() for _, reads in found))
            if needed == stored:
                break
            stored = needed
        made = [self.library_call(n) for n in self.nodes if _name(n) in EXTERN]
        return made + [kernel for kernel, _ in found if kernel.bytes]

    def _cheap(self) -> dict[fx.Node, tuple[set[fx.Node], int]]:
        """Nodes that other kernels compute again: what of memory they read, and operations."""
        found: dict[fx.Node, tuple[set[fx.Node], int]] = {}
        for node in self.fused:
            if _name(node) in REDUCTIONS or _name(node) in TAKES or _name(node) == "cat":
                continue
            reads, operations = set(), 1
            for source in map(self.root, node.all_input_nodes):
                of_source, more = found.get(source, ({source}, 0))
                reads |= of_source
                operations += more
            light = sum(map(_bytes, reads)) <= _bytes(node)
            if len(reads) <= MOST_READS and operations <= MOST_OPERATIONS and light:
                found[node] = (reads, operations)
        return found

    def _read_by_calls(self) -> set[fx.Node]:
        """Nodes that library calls and the graph's output read."""
        found = set()
        for node in self.fused:
            if any(self._stores(user) for user in node.users):
                found.add(node)
        return found

    def _stores(self, user: fx.Node) -> bool:
        if user.op == "output" or _name(user) in EXTERN:
            return True
        return self.is_alias(user) and any(self._stores(further) for further in user.users)

    def group(
        self, members: set[fx.Node], stored: set[fx.Node]
    ) -> tuple[Kernel, dict[fx.Node, int]]:
        """A kernel that leaves those of `members` in memory that are in `stored`, and what it
        reads."""
        computed: set[fx.Node] = set()
        due = [node for node in members if node in stored]
        read: dict[fx.Node, int] = {}
        while due:
            node = due.pop()
            if node in computed:
                continue
            computed.add(node)
            takes = _name(node) in TAKES
            for position, source in enumerate(node.all_input_nodes):
                root = self.root(source)
                if root in members:
                    due.append(root)
                    continue
                for known in self.cheap[root][0] if root in self.cheap else {root}:
                    if known in members:
                        due.append(known)
                        continue
                    size = _bytes(source) if known is root else _bytes(known)
                    size = _bytes(node) if takes and position == 0 else size
                    read[known] = max(read.get(known, 0), size)
        written = sum(map(_bytes, computed & stored))
        columns = [n for n in computed if n in self.columns]
        rows = any(_name(n) in REDUCTIONS and n not in self.columns for n in computed)
        again = 0 if rows else sum(_bytes(n.all_input_nodes[0]) for n in columns)
        size = sum(read.values()) + written + again
        largest = max(computed, key=_bytes, default=None)
        dtype = _dtype(largest) if largest is not None else ""
        return Kernel("fused", dtype, 1 + len(columns), size, 0), read

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
