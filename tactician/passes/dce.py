"""Dead code elimination: removes nodes whose results nothing reads."""

from __future__ import annotations

from ..ir.graph import Graph, Node
from ..ops import get
from .manager import Pass


class DeadCode(Pass):
    """Removes nodes without readers, and everything only they needed."""

    name = "dce"

    def run(self, graph: Graph) -> bool:
        outputs = set(graph.outputs)
        dead: list[Node] = []
        gone: set[Node] = set()
        for node in reversed(graph.nodes):
            if _has_effect(node):
                continue
            read = any(v in outputs or any(u not in gone for u in v.users) for v in node.outputs)
            if not read:
                dead.append(node)
                gone.add(node)
        if dead:
            graph.remove_all(dead)
        return bool(dead)


def _has_effect(node: Node) -> bool:
    """Whether the node does something although it has no outputs: an assertion that is not known
    to hold."""
    if node.outputs or get(node.op).is_pure(node):
        return False
    known = [v.const for v in node.present_inputs()]
    return any(c is None or not c.all() for c in known)
