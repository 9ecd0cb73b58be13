"""Folds per-channel scale and shift that follow a contraction into its weights and bias.

    'convolution(x, w, b) * s + t => convolution(x, w * s, b * s + t)'

Covers batch normalization (op ``scale`` along the channel axis), and bare multiplications,
divisions, additions and subtractions of a constant per output channel, after convolution,
deconvolution and matrix multiplication with constant weights.
"""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from ..ir.graph import Graph, Node, Value
from ..ops import emit
from .manager import Pass

_Array = np.ndarray
_CONV = ("convolution", "deconvolution")


class FoldAffine(Pass):
    """Conv + batch norm folding and its relatives."""

    name = "fold_affine"

    def run(self, graph: Graph) -> bool:
        changed = False
        for node in list(graph.nodes):
            anchor = _anchor(graph, node)
            if anchor is None:
                continue
            affine = _affine_of(node, anchor)
            if affine is None:
                continue
            new = _fold(graph, anchor, node, *affine)
            if new is not None:
                graph.replace_uses(node.output, new)
                new.name = node.output.name
                new.meta.update(node.output.meta)
                graph.remove_all([node, anchor])
                changed = True
        return changed


def _anchor(graph: Graph, node: Node) -> Node | None:
    """The contraction with constant weights that alone feeds ``node``, if any."""
    if node.op not in ("scale", "binary"):
        return None
    for v in node.present_inputs():
        p = v.producer
        if p is None or p.op not in (*_CONV, "matmul") or len(v.users) != 1:
            continue
        if v.users[node] != 1 or any(v is o for o in graph.outputs):
            continue
        w = p.inputs[1]
        if w is None or w.const is None or not w.dtype.is_float or w.dtype.bits < 16:
            continue
        if len(p.inputs) > 2 and p.inputs[2] is not None and p.inputs[2].const is None:
            continue
        if v.shape == node.output.shape and v.dtype is node.output.dtype:
            return p
    return None


def _affine_of(node: Node, anchor: Node) -> tuple[_Array, _Array] | None:
    """(scale, shift) per output channel, in float64, or None."""
    y = anchor.output
    channels = y.dims[1] if anchor.op in _CONV else y.dims[-1]
    if not isinstance(channels, int):
        return None
    axis = 1 if anchor.op in _CONV else y.rank - 1
    if node.op == "scale":
        return _of_scale(node, y, axis, channels)
    a, b = node.inputs
    other = b if a is y else a
    if other is None or other.const is None:
        return None
    c = _per_channel(other.const, y.rank, axis, channels)
    if c is None:
        return None
    one, zero = np.ones(channels), np.zeros(channels)
    fn = node.attrs.fn
    if fn == "add":
        return one, c
    if fn == "mul":
        return c, zero
    if fn == "sub":
        return (one, -c) if a is y else (-one, c)
    if fn == "div" and a is y and np.all(c != 0):
        return 1.0 / c, zero
    return None


def _of_scale(node: Node, y: Value, axis: int, channels: int) -> tuple[_Array, _Array] | None:
    shift, scale, power = (*node.inputs[1:], None, None, None)[:3]
    if node.inputs[0] is not y or any(v is not None and v.const is None for v in (shift, scale)):
        return None
    if power is not None and (power.const is None or np.any(power.const != 1)):
        return None
    parts = []
    for v, neutral in ((scale, 1.0), (shift, 0.0)):
        if v is None:
            parts.append(np.full(channels, neutral))
            continue
        assert v.const is not None
        if v.const.size == 1:
            parts.append(np.full(channels, float(v.const.reshape(-1)[0])))
        elif node.attrs.axis == axis and v.const.size == channels:
            parts.append(v.const.astype(np.float64).reshape(channels))
        else:
            return None
    return parts[0], parts[1]


def _per_channel(c: _Array, rank: int, axis: int, channels: int) -> _Array | None:
    """A constant operand as one number per channel, if it broadcasts that way."""
    if c.ndim > rank:
        return None
    shape = (1,) * (rank - c.ndim) + c.shape
    if any(d != 1 for i, d in enumerate(shape) if i != axis) or shape[axis] not in (1, channels):
        return None
    return np.broadcast_to(c.astype(np.float64).reshape(-1), (channels,)).copy()


def _fold(
    graph: Graph, anchor: Node, node: Node, scale: _Array, shift: _Array
) -> Value | None:
    if anchor.op == "matmul":
        return _fold_matmul(graph, anchor, node, scale, shift)
    x, w = anchor.inputs[0], anchor.inputs[1]
    assert w is not None and w.const is not None
    b = anchor.inputs[2] if len(anchor.inputs) > 2 else None
    if anchor.op == "convolution":
        factor = scale.reshape(-1, *(1,) * (w.const.ndim - 1))
    else:  # deconvolution weights are [C, K / groups, …]
        groups = anchor.attrs.groups
        per_input = scale.reshape(groups, -1).repeat(w.const.shape[0] // groups, axis=0)
        factor = per_input.reshape(*w.const.shape[:2], *(1,) * (w.const.ndim - 2))
    weights = _product(w.const, factor)
    bias = (0.0 if b is None else b.const.astype(np.float64)) * scale + shift  # type: ignore
    return _emit_like(graph, anchor, node, x, w, weights, bias)


def _fold_matmul(
    graph: Graph, anchor: Node, node: Node, scale: _Array, shift: _Array
) -> Value | None:
    """Only the scale can be folded: a matmul has no bias operand, its epilogue adds the shift."""
    if np.any(shift != 0) or anchor.attrs.tb == "vector":
        return None
    w = anchor.inputs[1]
    assert w is not None and w.const is not None
    factor = scale.reshape(-1, 1) if anchor.attrs.tb == "transpose" else scale
    return _emit_like(graph, anchor, node, anchor.inputs[0], w, _product(w.const, factor), None)


def _product(weights: _Array, factor: _Array) -> _Array:
    """Weights times factors in f64, rounded to their type piece by piece: whole copies in f64
    would take more time to touch for the first time than the products do."""
    out = np.empty(weights.shape, weights.dtype)
    return np.multiply(weights, factor, out=out, casting="unsafe", dtype=np.float64)


def _emit_like(
    graph: Graph, anchor: Node, node: Node, x: Value | None, w: Value, weights: _Array,
    bias: _Array | None,
) -> Value:
    inputs = [x, graph.constant(weights, w.name)]
    if bias is not None:
        inputs.append(graph.constant(bias.astype(w.dtype.np), f"{w.name}.bias"))
    attrs = {f.name: getattr(anchor.attrs, f.name) for f in fields(anchor.attrs)}
    new = emit(graph, anchor.op, inputs, f"{anchor.name} + {node.name}", before=node,
               source=anchor.source, **attrs)
    new.meta = {**anchor.meta, "layers": _layers(anchor) + _layers(node)}
    return new.output


def _layers(node: Node) -> tuple[str, ...]:
    return tuple(node.meta.get("layers", (node.name,)))
