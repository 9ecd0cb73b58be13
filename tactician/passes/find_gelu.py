"""Recognizes GELU written out in parts.

    'x * (1 + erf(x / sqrt 2)) * 0.5 => activation(x, gelu_erf)'
    'x * (1 + tanh((x + 0.044715 * x**3) * sqrt(2 / pi))) * 0.5 => activation(x, gelu_tanh)'

The factors of the outer product may come in any order and grouping. Constants may be rounded as
exporters of half precision round them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..ir.graph import Graph, Node, Value
from ..ops import emit
from .find_norm import producer, scalar
from .manager import Pass

_NEAR = 1e-3
_ROOT, _TANH, _CUBIC = math.sqrt(0.5), math.sqrt(2 / math.pi), 0.044715


class FindGelu(Pass):
    """GELU, exact and by tanh, from its parts."""

    name = "find_gelu"

    def run(self, graph: Graph) -> bool:
        changed = False
        outputs = set(graph.outputs)
        for node in list(graph.nodes):
            found = _match(node)
            if found is None:
                continue
            x, fn, inner = found
            if any(n.output in outputs for n in inner) or x.shape != node.output.shape:
                continue
            new = emit(graph, "activation", [x], node.name, before=node, source=node.source, fn=fn)
            layers = tuple(n.name for n in (*inner, node) if n.name)
            new.meta = {**node.meta, "layers": layers}
            new.output.meta.update(node.output.meta)
            graph.replace_uses(node.output, new.output)
            new.output.name = node.output.name
            changed = True
        return changed


def _match(node: Node) -> tuple[Value, str, list[Node]] | None:
    """What ``node`` is the GELU of, which one, and the nodes between."""
    if node.op != "binary" or node.attrs.fn != "mul" or not node.output.dtype.is_float:
        return None
    if "precision" in node.meta:
        return None  # a type was asked for in the middle
    for factors, inner in _factors(node):
        half = [v for v in factors if _number(v, 0.5)]
        rest = [v for v in factors if not any(v is h for h in half)]
        if len(half) != 1 or len(rest) != 2:
            continue
        for x, one in (rest, rest[::-1]):
            f = _plus_one(one)
            if f is None or f.op != "unary":
                continue
            arg = f.inputs[0]
            fn = _kind(f.attrs.fn, arg, x)
            if fn is not None:
                assert one.producer is not None
                assert arg is not None and arg.producer is not None
                return x, fn, [arg.producer, f, one.producer, *inner]
    return None


def _factors(node: Node) -> Iterator[tuple[list[Value], list[Node]]]:
    """Products of three that ``node`` is, and the node of the inner product."""
    a, b = node.inputs
    for x, y in ((a, b), (b, a)):
        p = producer(x, "binary", "mul")
        if p is not None and y is not None:
            yield [*p.present_inputs(), y], [p]


def _kind(fn: str, arg: Value | None, x: Value) -> str | None:
    if fn == "erf" and _scaled(arg, _ROOT) is x:
        return "gelu_erf"
    if fn == "tanh" and _is_cubic(_scaled(arg, _TANH), x):
        return "gelu_tanh"
    return None


def _is_cubic(v: Value | None, x: Value) -> bool:
    """Whether ``v`` is ``x + 0.044715 * x**3``."""
    total = producer(v, "binary", "add")
    if total is None:
        return False
    a, b = total.inputs
    return any(left is x and _is_cube(_scaled(right, _CUBIC), x) for left, right in
               ((a, b), (b, a)))


def _is_cube(v: Value | None, x: Value) -> bool:
    power = producer(v, "binary", "pow")
    if power is not None:
        return power.inputs[0] is x and _number(power.inputs[1], 3.0)
    product = producer(v, "binary", "mul")
    if product is None:
        return False
    for square, other in (product.inputs, product.inputs[::-1]):
        if other is x and _is_square(square, x):
            return True
    return False


def _is_square(v: Value | None, x: Value) -> bool:
    power = producer(v, "binary", "pow")
    if power is not None:
        return power.inputs[0] is x and _number(power.inputs[1], 2.0)
    product = producer(v, "binary", "mul")
    return product is not None and all(i is x for i in product.inputs)


def _scaled(v: Value | None, factor: float) -> Value | None:
    """``y`` if ``v`` is ``y * factor``, or divided by its inverse."""
    product = producer(v, "binary", "mul")
    if product is not None:
        a, b = product.inputs
        return a if _number(b, factor) else b if _number(a, factor) else None
    quotient = producer(v, "binary", "div")
    if quotient is not None and _number(quotient.inputs[1], 1 / factor):
        return quotient.inputs[0]
    return None


def _plus_one(v: Value) -> Node | None:
    total = producer(v, "binary", "add")
    if total is None:
        return None
    a, b = total.inputs
    other = a if _number(b, 1.0) else b if _number(a, 1.0) else None
    return None if other is None else other.producer


def _number(v: Value | None, near: float) -> bool:
    x = scalar(v)
    return x is not None and v is not None and v.dtype.is_float and abs(x - near) <= _NEAR * near
