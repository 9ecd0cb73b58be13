"""Structural invariants of a graph, checked between passes."""

from __future__ import annotations

from .graph import Graph, Node, Value


class InvalidGraph(AssertionError):
    """A pass or front end broke an invariant; a defect of tactician, not of the model."""


def verify(graph: Graph) -> None:
    """Checks SSA order, producer and user links, and that every value has a type.

    Raises:
        InvalidGraph: Naming the first node that breaks an invariant.
    """
    known: set[Value] = set(graph.inputs)
    for node in graph.nodes:
        for v in node.present_inputs():
            if v.const is None and v not in known:
                _fail(node, f"reads %{v.name} before it is computed")
            if v.users.get(node, 0) != sum(v is u for u in node.inputs):
                _fail(node, f"is not counted among the users of %{v.name}")
        for i, v in enumerate(node.outputs):
            if v.producer is not node or v.index != i:
                _fail(node, f"output %{v.name} does not point back at it")
            if v.shape is None:
                _fail(node, f"output %{v.name} has no shape ({node.error})")
            if v in known:
                _fail(node, f"output %{v.name} is computed twice")
            known.add(v)
        for sub in node.subgraphs:
            verify(sub)
    for v in graph.outputs:
        if v.const is None and v not in known:
            raise InvalidGraph(f"graph output %{v.name} is never computed")


def _fail(node: Node, what: str) -> None:
    raise InvalidGraph(f"{node.describe()} {what}")
