"""Rewrites composite ops into simpler ones, as their declarations say."""

from __future__ import annotations

from ..ir.graph import Graph
from ..ops import get
from ..ops.registry import Op
from .manager import Pass


class Decompose(Pass):
    """Applies `Op.decompose` until no node has one that applies."""

    name = "decompose"

    def run(self, graph: Graph) -> bool:
        changed = False
        work = list(graph.nodes)
        while work:
            node = work.pop()
            decl = get(node.op)
            if type(decl).decompose is Op.decompose:
                continue  # no op of this kind is composite
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
