"""Gives bodies of control flow the constants that they capture.

A body that reads a constant through a capture would pack or cast its weights in every iteration;
as a constant of its own they are prepared when the engine is built. The capture stays, unread.
"""

from __future__ import annotations

from ..ir.graph import Graph, Node, Value
from .manager import Pass


class BodyConstants(Pass):
    """Captured constants become constants of the bodies, innermost last."""

    name = "body_constants"

    def run(self, graph: Graph) -> bool:
        changed = False
        for node in graph.nodes:
            for body in node.subgraphs:
                for outer, inner in _captures(node, body):
                    changed |= _push(body, outer, inner)
                changed |= self.run(body)
        return changed


def _captures(node: Node, body: Graph) -> list[tuple[Value | None, Value]]:
    """Outer values and the body's inputs that stand for them."""
    if node.op == "if":
        return list(zip(node.inputs[1:], body.inputs, strict=True))
    if node.op != "loop":
        return []
    first = 2 + node.attrs.carried
    return list(zip(node.inputs[first:], body.inputs[first:], strict=True))


def _push(body: Graph, outer: Value | None, inner: Value) -> bool:
    if outer is None or outer.const is None or not inner.users:
        return False
    if outer.dtype is not inner.dtype or outer.shape != inner.shape:
        return False
    value = body.constant(outer.const, outer.name)
    value.dtype = outer.dtype
    value.meta = dict(outer.meta)
    for node in list(inner.users):
        for i, v in enumerate(node.inputs):
            if v is inner:
                node.set_input(i, value)
    return True
