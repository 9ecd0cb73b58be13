"""Graphs of which torch runs a part: what engines can't do stays a call of torch."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch.fx.passes.infra.partitioner import CapabilityBasedPartitioner
from torch.fx.passes.operator_support import OperatorSupportBase

from ..builder.builder import Builder
from ..support import logger as log
from .lower import Lowering, Piece, _place, is_random
from .table import table

MIN_BLOCK = 5
"""Fewer calls than this in a row stay in torch: calling an engine costs as much as they do."""


class _Supported(OperatorSupportBase):
    def __init__(self, nodes: Collection[Any]):
        self.nodes = nodes

    def is_node_supported(self, submodules: Any, node: Any) -> bool:
        return node in self.nodes


def unsupported(piece: Piece, also: Collection[Any] = (),
                modules: Collection[str] = ()) -> dict[Any, str]:
    """Nodes that engines can't run, and why.

    Args:
        also: Overloads (or their names, such as ``aten.add`` or ``torch.ops.aten.add.Tensor``)
            that are to stay in torch though engines could run them.
        modules: Names of classes of modules of which all calls stay in torch.
    """
    network = Builder(log.Logger(log.Severity.INTERNAL_ERROR)).create_network(1)
    lowering = Lowering(network, piece.bound, piece.user, piece.limits, tolerant=True)
    lowering.run(piece.module, None, None)
    names = {str(x).removeprefix("torch.ops.") for x in also}
    for node in piece.module.graph.nodes:
        if node.op == "call_function" and _names(node.target) & names:
            lowering.failed.setdefault(node, f"{node.target} was asked to stay in torch")
        elif node.op == "call_function" and modules and _classes(node) & set(modules):
            lowering.failed.setdefault(node, "its module was asked to stay in torch")
        elif node.op == "call_function" and is_random(node.target):
            lowering.failed.setdefault(node, f"{node.target}: torch draws its own random numbers")
    return lowering.failed


def _classes(node: Any) -> set[str]:
    """Classes of the modules that a call lies in."""
    kinds = [kind for _, kind in (node.meta.get("nn_module_stack") or {}).values()]
    return {(k if isinstance(k, str) else k.__name__).rpartition(".")[2] for k in kinds}


def _names(target: Any) -> set[str]:
    text = str(target)
    return {text, text.rpartition(".")[0]} if isinstance(target, torch._ops.OpOverload) else {text}


def report(failed: dict[Any, str]) -> str:
    """Every reason once, with the places where it holds."""
    places: dict[str, list[str]] = {}
    for node, why in failed.items():
        places.setdefault(why, []).append(_place(node))
    lines = [f"{len(failed)} call(s) run in torch:"]
    for why, where in places.items():
        more = f" and {len(where) - 1} more place(s)" if len(where) > 1 else ""
        lines.append(f"- {why}\n    at {where[0]}{more}")
    return "\n".join(lines)


def split(piece: Piece, failed: dict[Any, str], build: Callable[[Piece], torch.nn.Module],
          min_block: int = MIN_BLOCK) -> torch.nn.Module:
    """A module that calls engines for all but the failed nodes.

    Args:
        piece: The whole graph; its module is changed.
        build: Makes an engine of a part.
        min_block: Least number of calls worth an engine.

    Returns:
        A module of all the graph's placeholders, in order.
    """
    gm = piece.module
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            node.meta["holder"] = node.name
    good = {n for n in gm.graph.nodes if n.op == "call_function" and n not in failed
            and _computes(n)}
    partitioner = CapabilityBasedPartitioner(
        gm, _Supported(good), allows_single_node_partition=True,
        non_compute_ops=[], allowed_single_node_partition_ops=[],
    )
    kept = [p for p in partitioner.propose_partitions()
            if sum(_counts(n) for n in p.nodes) >= min_block]
    fused = partitioner.fuse_partitions(kept)
    for node in list(fused.graph.nodes):
        if node.op == "call_module":
            _replace(fused, node, piece, build)
    for node in fused.graph.nodes:
        if node.op == "placeholder" and holder(node) in piece.bound and not node.users:
            fused.graph.erase_node(node)  # engines have it
    fused.graph._tracer_cls = None  # pickling traces again, and needs no scopes
    fused.graph.lint()
    return torch.fx.GraphModule(fused, fused.graph)


def holder(node: Any) -> str:
    """The name a placeholder had in the whole graph: copies of graphs rename those that are
    called like functions of Python (``input``)."""
    return str(node.meta.get("holder", node.name))


def _computes(node: Any) -> bool:
    """Not so assertions about sizes, which have no results."""
    return bool(node.users) or node.meta.get("val") is not None


def _counts(node: Any) -> bool:
    row = table().get(node.target)
    return node.target is not operator.getitem and row is not None and row.family != "shape"


def _replace(fused: Any, node: Any, whole: Piece, build: Callable[[Piece], Any]) -> None:
    """Makes the call of a part a call of its engine."""
    inner = getattr(fused, node.target)
    takers = [n for n in inner.graph.nodes if n.op == "placeholder"]
    part = Piece(inner, limits=whole.limits)
    varying: list[Any] = []
    for taker, arg in zip(takers, node.args, strict=True):
        if arg.op == "placeholder" and holder(arg) in whole.bound:
            part.bound[taker.name] = whole.bound[holder(arg)]
        elif arg.op == "get_attr" and isinstance(_held(fused, arg), torch.Tensor):
            part.bound[taker.name] = (_held(fused, arg), arg.target)
        else:
            part.user[taker.name] = len(varying)
            varying.append(arg)
    outs = next(n for n in inner.graph.nodes if n.op == "output").args[0]
    engine = build(part)
    setattr(fused, node.target, Results(engine, single=not isinstance(outs, (tuple, list))))
    node.args = tuple(varying)


def _held(module: Any, node: Any) -> Any:
    for part in node.target.split("."):
        module = getattr(module, part)
    return module


class Results(torch.nn.Module):
    """An engine among calls of torch: takes flat arguments, gives a result or a tuple."""

    def __init__(self, engine: Any, single: bool):
        super().__init__()
        self.engine, self.single = engine, single

    def forward(self, *args: Any) -> Any:
        out = self.engine.run_flat(args)
        return out[0] if self.single else tuple(out)
