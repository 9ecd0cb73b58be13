"""Graphs that need no decompositions: torch's own way to get rid of mutations and of overloads
without importers traces the whole program again, which takes longer than building the engine."""

from __future__ import annotations

import operator
from typing import Any

import torch

from .converters import is_user_call
from .table import table

aten = torch.ops.aten
# Overloads whose result never shares memory with an argument.
_FRESH = {
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv_transpose2d.input,
    aten.convolution.default, aten.batch_norm.default, aten.layer_norm.default,
    aten.group_norm.default, aten.linear.default, aten.matmul.default, aten.mm.default,
    aten.bmm.default, aten.addmm.default, aten.baddbmm.default, aten.add.Tensor, aten.add.Scalar,
    aten.sub.Tensor, aten.rsub.Scalar, aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor,
    aten.div.Scalar, aten.relu.default, aten.relu6.default, aten.gelu.default, aten.silu.default,
    aten.sigmoid.default, aten.tanh.default, aten.hardswish.default, aten.hardtanh.default,
    aten.hardsigmoid.default, aten.leaky_relu.default, aten.clamp.default, aten.max_pool2d.default,
    aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.cat.default,
    aten.softmax.int, aten.embedding.default, aten.zeros.default, aten.ones.default,
    aten.full.default, aten.arange.default, aten.arange.start, aten.clone.default,
    aten.mean.dim, aten.sum.dim_IntList, aten.exp.default, aten.masked_fill.Scalar,
}  # fmt: skip


def without_mutations(module: Any) -> Any:
    """The graph with importable overloads alone, mutations of fresh results made plain calls.

    Returns:
        A graph module with the same placeholders, or None if the graph needs decompositions.
    """
    nodes = list(module.graph.nodes)
    if not all(_simple(n) for n in nodes):
        return None
    if not any(_changes(n) for n in nodes):
        return module
    graph = torch.fx.Graph()
    copies: dict[Any, Any] = {}
    graph.output(graph.graph_copy(module.graph, copies))
    for old, new in copies.items():
        new.meta, new.name = dict(old.meta), old.name
    order = {n: i for i, n in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if _changes(node) and not _rename(node, order):
            return None
    return torch.fx.GraphModule(module, graph)


def _simple(node: Any) -> bool:
    if node.op == "get_attr":
        return not isinstance(node.meta.get("val"), torch.nn.Module) and "val" in node.meta
    if node.op != "call_function" or node.target is operator.getitem:
        return True
    val = node.meta.get("val")
    if isinstance(val, (torch.SymInt, int, bool, float)) or (val is None and not node.users):
        return isinstance(node.target, torch._ops.OpOverload) or \
            getattr(node.target, "__module__", "") in ("_operator", "math", "torch")
    return is_user_call(node) or node.target in table() or _plain(node.target) is not None


def _plain(target: Any) -> Any:
    """The overload that gives what a mutating one leaves in its first argument."""
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return None
    name = target._schema.name.removeprefix("aten::")
    if not name.endswith("_") or name.startswith("__"):
        return None
    plain = getattr(getattr(aten, name[:-1], None), target._overloadname, None)
    return plain if plain in table() else None


def _changes(node: Any) -> bool:
    return node.op == "call_function" and node.target not in table() \
        and _plain(node.target) is not None


def _rename(node: Any, order: dict[Any, int]) -> bool:
    """Makes a mutation a plain call whose result later readers take; False if its argument may
    share memory with something else."""
    base = node.args[0]
    before = [u for u in base.users if order[u] < order[node]]
    fresh = base.op == "call_function" and base.target in _FRESH | _renamed(base)
    if not fresh or any(u.target not in _FRESH for u in before):
        return False
    if node.meta["val"].dtype is not base.meta["val"].dtype:
        return False
    node.target = _plain(node.target)
    node.meta["plain"] = True
    base.replace_all_uses_with(node, delete_user_cb=lambda u: order[u] > order[node])
    return True


def _renamed(node: Any) -> set[Any]:
    return {node.target} if node.meta.get("plain") else set()
