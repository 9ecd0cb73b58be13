"""Moves dequantize down and quantize up, so that what lies between works on integers.

    'transpose(dequantize(x)) => dequantize(transpose(x))'
    'quantize(max_pool(x)) => max_pool(quantize(x))'
    'quantize(dequantize(x)) => x'                          with equal parameters

Ops that only move elements, max pooling and relu commute with quantization. Integers then go
through memory instead of floats, and dequantize meets the contraction that takes it in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from ..ir.graph import Graph, Node, Value
from ..ops import emit
from ..ops.registry import OpError
from .manager import Pass
from .quantized import Scaling, dequantized, is_small_int, replace, scaling

# Operands that hold the elements which are moved; all operands of concat.
_MOVES: dict[str, tuple[int, ...] | None] = {
    "reshape": (0,), "squeeze": (0,), "unsqueeze": (0,), "identity": (0,), "transpose": (0,),
    "strided_slice": (0,), "concat": None, "expand": (0,), "tile": (0,), "gather": (0,),
    "gather_elements": (0,), "gather_nd": (0,), "depth_to_space": (0,), "space_to_depth": (0,),
    "reverse_sequence": (0,), "slice": (0,), "pad": (0,), "pooling": (0,),
}


class MoveQuantize(Pass):
    """Dequantize nodes move down, quantize nodes up, and pairs cancel."""

    name = "move_quantize"

    def run(self, graph: Graph) -> bool:
        if not any(n.op in ("quantize", "dequantize") for n in graph.nodes):
            return False
        changed = False
        for node in list(graph.nodes):
            if node.outputs and node.outputs[0].shape is not None:
                changed |= _cancel(graph, node) or _down(graph, node) or _up(graph, node)
        if changed:
            graph.toposort()
        return changed


def _cancel(graph: Graph, node: Node) -> bool:
    q = scaling(node, "quantize")
    d = None if q is None else dequantized(q.data)
    if q is None or d is None or not q.same_as(d) or d.data.dtype is not q.to:
        return False
    replace(graph, node, d.data)
    return True


def _data(node: Node) -> list[tuple[int, Value]] | None:
    """The moved operands, or None if the node does more than move them."""
    if node.op not in _MOVES or len(node.outputs) != 1:
        return None
    if node.op == "pooling" and node.attrs.fn != "max":
        return None
    if node.op == "slice" and (node.attrs.mode == "fill" or len(node.present_inputs()) > 4):
        return None
    indices = _MOVES[node.op]
    return [(i, v) for i, v in enumerate(node.inputs)
            if v is not None and (indices is None or i in indices)]


def _down(graph: Graph, node: Node) -> bool:
    if node.op == "activation" and node.attrs.fn == "relu":
        return _relu(graph, node)
    data = _data(node)
    if not data:
        return False
    found = [dequantized(v) for _, v in data]
    first = found[0]
    if first is None or any(s is None or not s.same_as(first) for s in found):
        return False
    if not is_small_int(first.data.dtype) or any(
        s is not None and (s.data.dtype is not first.data.dtype or s.to is not first.to)
        for s in found
    ):
        return False
    axis = _axis_below(node, first)
    inputs = _with_fill(graph, node, first)
    if axis is _LOST or inputs is None:
        return False
    for (i, _), s in zip(data, found, strict=True):
        assert s is not None
        inputs[i] = s.data
    moved = _again(graph, node, inputs)
    if moved is None:
        return False
    _dequantize(graph, node, moved, first, axis)
    return True


_LOST = -1


def _axis_below(node: Node, s: Scaling) -> int | None:
    """The axis of a scale per channel after the node; `_LOST` if there is none."""
    if s.axis is None:
        return None
    if node.op == "transpose":
        return int(tuple(node.attrs.perm).index(s.axis))
    if node.op == "identity" or (node.op == "pooling" and s.axis == 1):
        return s.axis
    return _LOST


def _with_fill(graph: Graph, node: Node, s: Scaling) -> list[Value | None] | None:
    """Operands with what padding adds as an integer; None if it has none."""
    inputs = list(node.inputs)
    if node.op != "pad" or node.attrs.mode != "constant":
        return inputs
    fill = inputs[2] if len(inputs) > 2 else None
    if fill is not None and (fill.const is None or np.any(fill.const != 0)):
        return None
    if s.zero is None:
        return inputs[:2]
    if s.zero.const is None or s.zero.const.size != 1:
        return None
    return [*inputs[:2], graph.constant(s.zero.const.reshape(()), "zero point")]


def _relu(graph: Graph, node: Node) -> bool:
    s = dequantized(node.inputs[0])
    if s is None or s.axis is not None or not is_small_int(s.data.dtype):
        return False
    if s.zero is None and s.data.dtype.kind == "u":
        moved = s.data
    else:
        zero = s.zero or graph.constant(np.zeros((), s.data.dtype.np))
        moved = emit(graph, "binary", [s.data, zero], node.name, before=node, fn="max").output
        if moved.shape != s.data.shape:
            graph.remove_all([moved.producer] if moved.producer else [])
            return False
    _dequantize(graph, node, moved, s, None)
    return True


def _dequantize(
    graph: Graph, node: Node, moved: Value, s: Scaling, axis: int | None
) -> None:
    new = emit(graph, "dequantize", [moved, s.scale, s.zero], node.name, before=node,
               axis=axis or 0, to=s.to)
    new.meta = dict(node.meta)
    replace(graph, node, new.output)


def _again(graph: Graph, node: Node, inputs: Sequence[Value | None]) -> Value | None:
    """The node again on other operands; None if it does not take their type."""
    attrs: dict[str, Any] = {f.name: getattr(node.attrs, f.name) for f in fields(node.attrs)}
    try:
        new = emit(graph, node.op, inputs, node.name, before=node, source=node.source, **attrs)
    except OpError:
        return None
    new.meta = dict(node.meta)
    return new.output


# --- up -----------------------------------------------------------------------------------------


def _up(graph: Graph, node: Node) -> bool:
    """A quantize node above the mover whose result it alone reads."""
    q = scaling(node, "quantize")
    mover = None if q is None else q.data.producer
    if q is None or q.axis is not None or mover is None or not is_small_int(q.to):
        return False
    if _readers(q.data) != {node} or any(q.data is o for o in graph.outputs):
        return False
    data = _data(mover)
    if not data or all(v.producer is None for _, v in data):
        return False
    if any(not _may_quantize(graph, v, mover) for _, v in data):
        return False
    inputs = _with_fill(graph, mover, q)
    if inputs is None:
        return False
    made: dict[Value, Value] = {}
    for i, v in data:
        if v not in made:
            made[v] = _quantize(graph, mover, v, node, q)
        inputs[i] = made[v]
    moved = _again(graph, mover, inputs)
    if moved is None:
        graph.remove_all([v.producer for v in made.values() if v.producer])
        return False
    for real, integers in [*made.items(), (q.data, moved)]:
        for user in list(real.users):
            if user.op == "shape":
                user.set_input(0, integers)
    replace(graph, node, moved)
    return True


def _readers(v: Value) -> set[Node]:
    """Nodes that read the elements of a value, not only its shape."""
    return {n for n in v.users if n.op != "shape"}


def _may_quantize(graph: Graph, v: Value, mover: Node) -> bool:
    """Whether a value needs to exist as integers only, or costs nothing to make them of."""
    if any(v is o for o in graph.outputs):
        return False
    return v.const is not None or _readers(v) == {mover} or dequantized(v) is not None


def _quantize(graph: Graph, before: Node, v: Value, like: Node, q: Scaling) -> Value:
    new = emit(graph, "quantize", [v, q.scale, q.zero], like.name, before=before, axis=0,
               to=q.to, saturate=like.attrs.saturate)
    new.meta = dict(like.meta)
    return new.output
