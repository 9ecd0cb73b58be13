"""Dead code elimination: removes nodes whose results nothing reads."""

from __future__ import annotations

from ..ir.graph import Graph, Node
from ..ops import get
from ..ops._shapes import data_symbols
from .manager import Pass


class DeadCode(Pass):
    """Removes nodes without readers, and everything only they needed.

    Nodes that sizes of other values come from stay, though nothing reads their results.
    """

    name = "dce"

    def run(self, graph: Graph) -> bool:
        outputs = set(graph.outputs)
        dead: list[Node] = []
        gone: set[Node] = set()
        sizes: set[str] = set()
        for node in reversed(graph.nodes):
            read = _has_effect(node) or any(
                v in outputs or any(u not in gone for u in v.users) for v in node.outputs)
            if read or not sizes.isdisjoint(node.meta.get("data_dims", ())):
                sizes |= _data_sizes(node)
            else:
                dead.append(node)
                gone.add(node)
        if dead:
            graph.remove_all(dead)
        return bool(dead)


def _data_sizes(node: Node) -> set[str]:
    """Sizes that running some node tells, in what a node gives."""
    inner = (v for body in node.subgraphs for n in body.nodes for v in n.outputs)
    return set().union(*map(data_symbols, (*node.outputs, *inner)))


def _has_effect(node: Node) -> bool:
    """Whether the node does something although it has no outputs: an assertion that is not known
    to hold."""
    if node.outputs or get(node.op).is_pure(node):
        return False
    known = [v.const for v in node.present_inputs()]
    return any(c is None or not c.all() for c in known)
