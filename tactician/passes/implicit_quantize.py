"""Quantizes an f32 network by the ranges of its tensors (calibrated, or set by hand).

Operands of contractions with constant weights that have a range go through quantize and
dequantize, symmetrically in i8; weights are quantized per output channel. From there on the
network is an explicitly quantized one (see `move_quantize` and `quantize_contractions`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from ..ir import dtypes as T
from ..ir.graph import Graph, Node, Value
from ..ops import emit
from ..support.errors import BuildError

LARGEST = 127.0  # i8 is used symmetrically
# Multiply-adds per element below which bringing a graph's input to i8 costs more than it saves:
# convolutions of 3 or 8 channels lose up to a quarter at 54, are even at 72 and gain at 108.
LEAST_WORK = 64

_OPS = {"convolution": "int_conv", "matmul": "int_matmul"}
_VIEWS = frozenset("reshape squeeze unsqueeze transpose identity depth_to_space space_to_depth "
                   "slice strided_slice".split())
# Readers of a quantized tensor that may as well read its integers.
_FOLLOWERS = frozenset("pooling concat binary activation reduce".split()) | _VIEWS


@dataclass
class QuantizeReport:
    """Attributes:
        quantized: Layers that compute in i8 now.
        skipped: (layer, reason) of contractions that don't.
    """

    quantized: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)


def contraction_operand(node: Node) -> Value | None:
    """The activation that a contraction with constant f32 weights reads, if ``node`` is one."""
    if node.op not in _OPS or node.outputs[0].dtype is not T.f32 or node.outputs[0].shape is None:
        return None
    x, w = node.inputs[:2]
    if x is None or w is None or w.const is None or x.const is not None:
        return None
    if node.op == "matmul" and "vector" in (node.attrs.ta, node.attrs.tb):
        return None
    return x


def ranged(v: Value) -> tuple[Value, float] | None:
    """The value whose range tells that of ``v`` (itself, or what it is moved from), and the
    largest magnitude in it."""
    while True:
        found = v.meta.get("dynamic_range")
        if found is not None:
            return v, max(abs(found[0]), abs(found[1]))
        p = v.producer
        moves = p is not None and (
            p.op in _VIEWS or (p.op == "pooling" and p.attrs.fn == "max")
            or (p.op == "activation" and p.attrs.fn == "relu")
        )
        if p is None or not moves or p.inputs[0] is None:
            return None
        v = p.inputs[0]


def residual_operand(node: Node) -> Value | None:
    """Of two convolutions' results that are added, the one that goes through memory."""
    if node.op != "binary" or node.attrs.fn != "add":
        return None
    a, b = node.inputs
    if a is None or b is None or a.shape != b.shape or a.dtype is not T.f32:
        return None
    if any(v.producer is None or contraction_operand(v.producer) is None for v in (a, b)):
        return None
    first = min((a, b), key=lambda v: v.producer.id if v.producer else 0)
    return first if set(first.users) == {node} else None


def averaged_operand(node: Node) -> Value | None:
    """What an average over positions reads, if contractions made it and one reads the result
    (squeeze and excite, global pooling): integers are fewer bytes."""
    average = (node.op == "reduce" and node.attrs.fn == "mean" and 1 not in node.attrs.axes) or (
        node.op == "pooling" and node.attrs.fn == "average"
    )
    x = node.inputs[0] if average else None
    if x is None or x.rank < 4 or x.dtype is not T.f32:
        return None
    if any(u is not node and u.op not in ("binary", "shape") for u in x.users):
        return None
    return x if _maker(x) is not None and _feeds_contraction(node.outputs[0]) else None


def _maker(v: Value) -> Node | None:
    """The contraction whose epilogue computes a value."""
    p = v.producer
    while p is not None and p.op in ("activation", "binary"):
        p = next((u.producer for u in p.inputs if u is not None and u.shape == v.shape), None)
    return p if p is not None and p.op in _OPS else None


def _feeds_contraction(v: Value) -> bool:
    return any(
        contraction_operand(n) is v or (n.op in _VIEWS and _feeds_contraction(n.outputs[0]))
        for n in v.users
    )


Stays = Callable[[Node, Value], "str | None"]
"""Why a contraction that could be quantized, given with its activation, is better left alone."""


def quantize_by_ranges(
    graph: Graph, takes: Callable[[Node], bool], obey: bool = False, stays: Stays | None = None
) -> QuantizeReport:
    """Inserts quantize and dequantize nodes; bodies of control flow stay as they are.

    Args:
        graph: Optimized f32 graph; ``meta["dynamic_range"]`` of its values are their ranges.
        takes: Whether the target has a kernel for an integer contraction.
        obey: Whether a layer that asks for i8 and can't have it is an error.
        stays: Asked about layers that don't ask for a type; by default a rule about the work done
            per element of an input decides.

    Raises:
        BuildError: In that case, naming the layer.
    """
    report = QuantizeReport()
    chosen: dict[Node, Value] = {}
    for node in graph.nodes:
        x = contraction_operand(node)
        if x is None:
            continue
        reason = _why_not(node, x, takes, stays)
        if reason is None:
            chosen[node] = x
            report.quantized.append(node.name or node.op)
        else:
            if obey and node.meta.get("precision") is T.i8:
                raise BuildError(f"{node.describe()} can't have precision i8: {reason}")
            report.skipped.append((node.name or node.op, reason))
    others = [(n, v) for n in graph.nodes for f in (residual_operand, averaged_operand)
              if (v := f(n)) is not None]
    twins: dict[Value, Value] = {}
    for node, x in chosen.items():
        if x not in twins:
            twins[x] = _quantized(graph, x, node)
        node.set_input(0, twins[x])
        _quantize_weights(graph, node)
    for v, twin in list(twins.items()):
        _let_read(graph, v, twin)
    for node, v in others if chosen else []:
        if v not in twins and _maker(v) in chosen and ranged(v) is not None:
            twins[v] = _quantized(graph, v, node)
            _let_read(graph, v, twins[v])
    graph.toposort()
    return report


def _why_not(
    node: Node, x: Value, takes: Callable[[Node], bool], stays: Stays | None
) -> str | None:
    asked = node.meta.get("precision")
    if asked is not None and asked is not T.i8:
        return f"its precision is set to {asked}"
    found = ranged(x)
    if found is None:
        return f"its input {x.name!r} has no dynamic range"
    if not 0 < found[1] < float("inf"):
        return f"the range of its input {x.name!r} is {found[1]}"
    w = node.inputs[1]
    assert w is not None and w.const is not None
    if not np.isfinite(w.const).all():
        return "its weights are not finite"
    if not takes(_trial(node, x, w)):
        return "there is no kernel for it"
    if asked is not None:
        return None
    return _little_work(node, x) if stays is None else stays(node, x)


def _little_work(node: Node, x: Value) -> str | None:
    if x.producer is not None or _work(node, x) >= LEAST_WORK:
        return None
    return f"it does {_work(node, x):.3g} multiply-adds per element of {x.name!r}: too few"


def _work(node: Node, x: Value) -> float:
    """Multiply-adds per element of an operand; infinitely many where a size is not known."""
    w = node.inputs[1]
    assert w is not None and w.const is not None
    if node.op == "matmul":
        last = 0 if node.attrs.tb == "transpose" else 1
        return float(w.const.shape[-2 + last])
    elements, outputs = ([d for d in v.dims[1:] if isinstance(d, int)] for v in (x, node.output))
    if len(elements) < x.rank - 1 or len(outputs) < node.output.rank - 1:
        return float("inf")
    per_output = w.const.size // w.const.shape[0]
    return float(per_output * np.prod(outputs) / max(float(np.prod(elements)), 1.0))


def _trial(node: Node, x: Value, w: Value) -> Node:
    """The integer contraction that a node would become, in a graph of its own."""
    graph = Graph("trial")
    assert w.const is not None
    data = graph.add_input("x", T.i8, x.dims)
    weights = graph.constant(np.zeros(w.const.shape, np.int8))
    attrs: dict[str, Any] = {
        f.name: getattr(node.attrs, f.name) for f in fields(node.attrs) if f.name != "to"
    }
    new = emit(graph, _OPS[node.op], [data, weights], node.name, **attrs)
    graph.outputs = [new.output]
    return new


def _quantized(graph: Graph, v: Value, before: Node) -> Value:
    """A value through i8 and back."""
    found = ranged(v)
    assert found is not None
    scale = graph.constant(np.float32(found[1] / LARGEST), f"{v.name}.scale")
    q = emit(graph, "quantize", [v, scale], f"{v.name} to i8", before=before, axis=0, to=T.i8)
    d = emit(graph, "dequantize", [q.output, scale], f"{v.name} from i8", before=before, axis=0,
             to=T.f32)
    for n in (q, d):
        n.meta["layers"] = ()
    return d.output


def _quantize_weights(graph: Graph, node: Node) -> None:
    w = node.inputs[1]
    assert w is not None and w.const is not None
    axis = 0 if node.op == "convolution" else w.rank - (2 if node.attrs.tb == "transpose" else 1)
    if node.op == "matmul" and w.rank > 2:
        scale = np.asarray(np.abs(w.const).max(initial=0.0) / LARGEST, np.float32)
        spread = scale
    else:
        others = tuple(i for i in range(w.rank) if i != axis)
        scale = (np.abs(w.const).max(axis=others, initial=0.0) / LARGEST).astype(np.float32)
        spread = scale.reshape([-1 if i == axis else 1 for i in range(w.rank)])
    scale = np.where(scale > 0, scale, np.float32(1))
    spread = np.where(spread > 0, spread, np.float32(1))
    data = np.clip(np.rint(w.const / spread), -LARGEST, LARGEST).astype(np.int8)
    q = graph.constant(data, w.name)
    q.meta = dict(w.meta)
    d = emit(graph, "dequantize", [q, graph.constant(scale, f"{w.name}.scale")], node.name,
             before=node, axis=axis, to=T.f32)
    d.meta["layers"] = ()
    node.set_input(1, d.output)


def _let_read(graph: Graph, v: Value, twin: Value) -> None:
    """Lets others read the integers, too, so that the reals need not be stored."""
    own = {n for d in (twin,) for n in (d.producer,) if n is not None}
    for user in list(v.users):
        if user in own or user.op == "quantize" or user.op not in _FOLLOWERS:
            continue
        if v.producer is None and user.op in _VIEWS:
            continue
        for i, u in enumerate(user.inputs):
            if u is v:
                user.set_input(i, twin)
