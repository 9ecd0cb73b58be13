"""Cuts the top-k of long lines in two: the best of each piece, then the best of those.

    'topk(x[n], k) => topk(best of x[m, n / m], k)'

Candidates stay in order of index, so equal elements do. Only where a target refuses lines that
are this long (because its work grows with their square) but takes the pieces.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..ir.graph import Graph, Node, Value
from ..ops import emit
from .manager import Pass

PIECE = 8192
_GAIN = 4  # pieces must be so many times longer than k


def pieces_of(node: Node) -> int:
    """How many pieces the lines of a top-k node would be cut to; 0 if they stay whole."""
    x, values = node.inputs[0], node.outputs[0]
    assert x is not None
    n, k = x.dims[-1], values.dims[-1]
    if node.attrs.axis % x.rank != x.rank - 1 or not all(type(d) is int for d in x.dims):
        return 0
    if not isinstance(n, int) or not isinstance(k, int) or n <= 2 * PIECE or k * _GAIN > PIECE:
        return 0
    return n // PIECE


class SplitTopK(Pass):
    """See the module's text.

    Args:
        takes: Whether the target has a tactic for a node.
    """

    name = "split_topk"

    def __init__(self, takes: Callable[[Node], bool]):
        self.takes = takes

    def run(self, graph: Graph) -> bool:
        changed = False
        work = [n for n in graph.nodes if n.op == "topk"]
        while work:
            node = work.pop()
            if not pieces_of(node) or self.takes(node) or not self.takes(_piece(node)):
                continue
            new = _split(graph, node)
            for old, result in zip(node.outputs, new, strict=True):
                graph.replace_uses(old, result)
                result.name = old.name
                result.meta.update(old.meta)
            graph.remove(node)
            assert new[0].producer is not None
            work.append(new[0].producer)
            changed = True
        return changed


def _piece(node: Node) -> Node:
    """The top-k of one piece, in a graph of its own."""
    x, k = node.inputs[0], node.outputs[0].dims[-1]
    assert x is not None
    graph = Graph()
    v = graph.add_input("x", x.dtype, (*x.dims[:-1], PIECE))
    return emit(graph, "topk", [v, graph.constant(np.array([k]))], largest=node.attrs.largest)


def _split(graph: Graph, node: Node) -> list[Value]:
    x, count = node.inputs[0], node.inputs[1]
    assert x is not None and count is not None
    lead, n = tuple(int(d) for d in x.dims[:-1]), int(x.dims[-1])  # type: ignore[arg-type]
    k, pieces = int(node.outputs[0].dims[-1]), pieces_of(node)  # type: ignore[arg-type]
    whole = pieces * PIECE
    attrs = {"axis": -1, "largest": node.attrs.largest, "sorted": True}

    def make(op: str, inputs: list[Value | None], **kw: Any) -> list[Value]:
        name = f"{node.name}.{op}{len(graph.nodes)}"
        made = emit(graph, op, inputs, name, before=node, source=node.source, **kw)
        made.meta.setdefault("layers", node.meta.get("layers", (node.name,)))
        return list(made.outputs)

    def ints(*values: int) -> Value:
        return graph.constant(np.array(values, np.int64), "ints")

    def cut(v: Value, start: int, stop: int) -> Value:
        return make("strided_slice", [v, ints(start), ints(stop), ints(v.rank - 1)])[0]

    (parts,) = make("reshape", [cut(x, 0, whole) if whole < n else x,
                                ints(*lead, pieces, PIECE)])  # fmt: skip
    best, places = make("topk", [parts, ints(k)], **attrs)
    starts = graph.constant(np.arange(pieces, dtype=np.int64)[:, None] * PIECE, "starts")
    (places,) = make("binary", [places, starts], fn="add")
    (best,) = make("reshape", [best, ints(*lead, pieces * k)])
    (places,) = make("reshape", [places, ints(*lead, pieces * k)])
    if whole < n:
        rest = np.broadcast_to(np.arange(whole, n), (*lead, n - whole))
        (best,) = make("concat", [best, cut(x, whole, n)], axis=x.rank - 1)
        (places,) = make("concat", [places, graph.constant(np.ascontiguousarray(rest))],
                         axis=x.rank - 1)  # fmt: skip
    values, chosen = make("topk", [best, count], **attrs)
    (index,) = make("gather_elements", [places, chosen], axis=x.rank - 1)
    return [values, index]
