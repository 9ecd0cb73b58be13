"""Rewrites composite ops into simpler ones, as their declarations say."""

from __future__ import annotations

from collections.abc import Callable

from ..ir.graph import Graph, Node
from ..ops import get
from ..ops.registry import Op
from .manager import Pass

_MAY_STAY = frozenset({"attention", "quantized_lstm"})


class Decompose(Pass):
    """Applies `Op.decompose` until no node has one that applies.

    Args:
        takes: Whether the target has a tactic for a node that may stay whole (attention,
            quantized LSTM).
    """

    name = "decompose"

    def __init__(self, takes: Callable[[Node], bool] | None = None):
        self.takes = takes

    def run(self, graph: Graph) -> bool:
        changed = False
        work = list(graph.nodes)
        while work:
            node = work.pop()
            decl = get(node.op)
            if type(decl).decompose is Op.decompose:
                continue  # no op of this kind is composite
            if node.op in _MAY_STAY and self.takes is not None and self.takes(node):
                continue
            before = set(graph.nodes)
            results = decl.decompose(node, graph)
            if results is None:
                continue
            for old, new in zip(node.outputs, results, strict=True):
                graph.replace_uses(old, new)
                if new.producer is not None:
                    new.name = old.name
                    new.meta.update(old.meta)
            added = [n for n in graph.nodes if n not in before]
            for n in added:
                n.meta.setdefault("layers", node.meta.get("layers", (node.name,)))
            graph.remove(node)
            work.extend(added)
            changed = True
        return changed
