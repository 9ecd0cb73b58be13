"""Recognizes layer normalization and RMS normalization written out in parts.

    'd = x - mean(x); d / sqrt(mean(d * d) + e) * s + b => normalization(x, s, b)'
    'x / sqrt(mean(x * x) + e) * s => normalization(x, s, rms)'

Exporters write squares as ``pow(d, 2)`` or ``d * d``, and the quotient as a division, or a
multiplication with the reciprocal. Scale and bias are taken in where they are constants that
broadcast over the normalized axes only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..ir.graph import Graph, Node, Value
from ..ops import emit
from .manager import Pass


class FindNorm(Pass):
    """Layer and RMS normalization from their parts."""

    name = "find_norm"

    def run(self, graph: Graph) -> bool:
        changed = False
        for node in list(graph.nodes):
            found = _match(node)
            if found is None:
                continue
            new = emit(
                graph, "normalization", [found.x], node.name, before=node, axes=found.axes,
                epsilon=found.epsilon, rms=found.rms,
            )
            new.meta = {**node.meta, "layers": found.layers}
            graph.replace_uses(node.output, new.output)
            new.output.name = node.output.name
            changed = True
        for node in list(graph.nodes):
            if node.op == "normalization":
                changed |= _absorb_affine(graph, node)
        return changed


@dataclass
class _Found:
    x: Value
    axes: tuple[int, ...]
    epsilon: float
    rms: bool
    layers: tuple[str, ...]


def producer(v: Value | None, op: str, fn: str | None = None) -> Node | None:
    """The node that computes a value, if it is of that op and function."""
    p = None if v is None else v.producer
    if p is None or p.op != op or (fn is not None and p.attrs.fn != fn):
        return None
    return p


def scalar(v: Value | None) -> float | None:
    """The number that a value is, if it is one."""
    if v is None or v.const is None or v.const.size != 1:
        return None
    return float(v.const.reshape(-1)[0])


def _match(node: Node) -> _Found | None:
    """``node`` as the quotient of a normalization."""
    if node.op != "binary" or not node.output.dtype.is_float:
        return None
    a, b = node.inputs
    pairs = []
    if node.attrs.fn == "div":
        pairs = [(a, producer(b, "unary", "sqrt"))]
    elif node.attrs.fn == "mul":
        pairs = [(x, _inverse_root(y)) for x, y in ((a, b), (b, a))]
    for top, root in pairs:
        if top is not None and root is not None:
            found = _variance(node, top, root)
            if found is not None:
                return found
    return None


def _inverse_root(v: Value | None) -> Node | None:
    """The square root whose reciprocal ``v`` is; ``rsqrt`` counts as its own root."""
    rsqrt = producer(v, "unary", "rsqrt")
    if rsqrt is not None:
        return rsqrt
    recip = producer(v, "unary", "recip")
    if recip is not None:
        return producer(recip.inputs[0], "unary", "sqrt")
    quotient = producer(v, "binary", "div")
    if quotient is not None and scalar(quotient.inputs[0]) == 1.0:
        return producer(quotient.inputs[1], "unary", "sqrt")
    return None


def _variance(node: Node, top: Value, root: Node) -> _Found | None:
    total = producer(root.inputs[0], "binary", "add")
    if total is None:
        return None
    for v, e in (total.inputs, total.inputs[::-1]):
        epsilon, mean = scalar(e), producer(v, "reduce", "mean")
        if epsilon is None or mean is None or not mean.attrs.keepdims:
            continue
        if _square_of(mean.inputs[0]) is not top:
            continue
        axes = tuple(mean.attrs.axes)
        layers = tuple(n.name for n in (mean, total, root, node) if n.name)
        centred = _centred(top, axes)
        if centred is not None:
            return _Found(centred, axes, epsilon, False, layers)
        return _Found(top, axes, epsilon, True, layers)
    return None


def _square_of(v: Value | None) -> Value | None:
    power = producer(v, "binary", "pow")
    if power is not None and scalar(power.inputs[1]) == 2.0:
        return power.inputs[0]
    product = producer(v, "binary", "mul")
    if product is not None and product.inputs[0] is product.inputs[1]:
        return product.inputs[0]
    return None


def _centred(d: Value, axes: tuple[int, ...]) -> Value | None:
    """``x`` if ``d`` is ``x - mean(x)`` over the same axes."""
    difference = producer(d, "binary", "sub")
    if difference is None:
        return None
    x, m = difference.inputs
    mean = producer(m, "reduce", "mean")
    if mean is None or mean.inputs[0] is not x or not mean.attrs.keepdims:
        return None
    return x if tuple(mean.attrs.axes) == axes else None


def _absorb_affine(graph: Graph, norm: Node) -> bool:
    """Takes a following product with, then sum of, a constant into the normalization."""
    y = norm.output
    if len(y.users) != 1 or any(y is o for o in graph.outputs):
        return False
    (user,) = y.users
    if user.op != "binary" or user.attrs.fn not in ("mul", "add") or y.users[user] != 1:
        return False
    other = user.inputs[1] if user.inputs[0] is y else user.inputs[0]
    scale, bias = (*norm.inputs[1:], None, None)[:2]
    if other is None or other.const is None or user.output.shape != y.shape:
        return False
    if not _over_axes(other.const, y.rank, norm.attrs.axes) or other.dtype is not y.dtype:
        return False
    full = other.const.reshape((1,) * (y.rank - other.const.ndim) + other.const.shape)
    operand = graph.constant(np.ascontiguousarray(full), other.name)
    if user.attrs.fn == "mul" and scale is None and bias is None:
        norm.set_input(1, operand)
    elif user.attrs.fn == "add" and bias is None and not norm.attrs.rms:
        if scale is None:
            norm.set_input(1, graph.constant(np.ones_like(full), "ones"))
        norm.set_input(2, operand)
    else:
        return False
    norm.meta["layers"] = (*norm.meta.get("layers", (norm.name,)), user.name)
    graph.replace_uses(user.output, y)
    y.name = user.output.name
    graph.remove(user)
    return True


def _over_axes(c: np.ndarray, rank: int, axes: tuple[int, ...]) -> bool:
    """Whether a constant operand varies along normalized axes only."""
    if c.ndim > rank:
        return False
    shape = (1,) * (rank - c.ndim) + c.shape
    return all(d == 1 or i in axes for i, d in enumerate(shape))
