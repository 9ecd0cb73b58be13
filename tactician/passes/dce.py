"""Dead code elimination: removes nodes whose results nothing reads."""

from __future__ import annotations

from ..ir.graph import Graph, Node
from .manager import Pass

_EFFECTS = frozenset({"assertion"})


class DeadCode(Pass):
    """Removes nodes without readers, and everything only they needed."""

    name = "dce"

    def run(self, graph: Graph) -> bool:
        outputs = set(graph.outputs)
        dead: list[Node] = []
        gone: set[Node] = set()
        for node in reversed(graph.nodes):
            if node.op in _EFFECTS:
                continue
            read = any(v in outputs or any(u not in gone for u in v.users) for v in node.outputs)
            if not read:
                dead.append(node)
                gone.add(node)
        if dead:
            graph.remove_all(dead)
        return bool(dead)
