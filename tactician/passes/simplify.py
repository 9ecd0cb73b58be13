"""Removes operations that change nothing, and pairs that cancel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..ir.dtypes import f32
from ..ir.graph import Graph, Node, Value
from ..ops import emit
from .manager import Pass


class Simplify(Pass):
    """Identities, casts to the same type, reshapes and transposes that cancel, and the like."""

    name = "simplify"

    def run(self, graph: Graph) -> bool:
        changed = False
        for node in list(graph.nodes):
            rule = _RULES.get(node.op)
            if rule is None or not node.outputs or node.outputs[0].shape is None:
                continue
            new = rule(graph, node)
            if new is not None and _compatible(node.outputs[0], new):
                changed |= _forward(graph, node, new)
        return changed


def _compatible(old: Value, new: Value) -> bool:
    return old.dtype is new.dtype and old.shape == new.shape


def _forward(graph: Graph, node: Node, new: Value) -> bool:
    """Readers of the node's output read ``new``. Graph outputs keep their own value unless the
    replacement is an intermediate result nobody else has named."""
    old = node.outputs[0]
    if any(old is v for v in graph.outputs):
        used = any(new is v for v in graph.outputs)
        if new.producer is None or used or new.producer not in graph.nodes:
            readers = list(old.users)
            for reader in readers:
                for i, v in enumerate(reader.inputs):
                    if v is old:
                        reader.set_input(i, new)
            return bool(readers)
        new.name = old.name
        new.meta.update(old.meta)
    if not old.users and not any(old is v for v in graph.outputs):
        return False
    graph.replace_uses(old, new)
    return True


def _input(graph: Graph, node: Node) -> Value | None:
    return node.inputs[0]


def _cast(graph: Graph, node: Node) -> Value | None:
    """A cast to the same type, or back from a wider one."""
    x = node.inputs[0]
    inner = None if x is None else x.producer
    if x is None or inner is None or inner.op != "cast":
        return x
    source, to = inner.inputs[0], node.outputs[0].dtype
    wider = source is not None and source.dtype is to and to.is_float and x.dtype.is_float
    return source if wider and x.dtype.bits > to.bits >= 16 else x


def _transpose(graph: Graph, node: Node) -> Value | None:
    perm, x = tuple(node.attrs.perm), node.inputs[0]
    assert x is not None
    if perm == tuple(range(len(perm))):
        return x
    inner = x.producer
    if inner is None or inner.op != "transpose":
        return _moves_nothing(graph, node, x, perm)
    source = inner.inputs[0]
    assert source is not None
    joint = tuple(inner.attrs.perm[p] for p in perm)
    if joint == tuple(range(len(joint))):
        return source
    return emit(graph, "transpose", [source], node.name, before=node, perm=joint).output


def _moves_nothing(graph: Graph, node: Node, x: Value, perm: tuple[int, ...]) -> Value | None:
    """A transpose that only moves axes of size 1, as a reshape."""
    long = [p for p in perm if x.dims[p] != 1]
    dims = [d if isinstance(d, int) else -1 for d in node.output.dims]
    if long != sorted(long) or dims.count(-1) > 1 or 0 in dims or len(perm) < 3:
        return None
    shape = graph.constant(np.array(dims, np.int64))
    return emit(graph, "reshape", [x, shape], node.name, before=node, zero_copies=False).output


def _view(graph: Graph, node: Node) -> Value | None:
    """A chain of reshapes that ends in the shape it began with."""
    x, out = node.inputs[0], node.outputs[0]
    while x is not None:
        if x.shape == out.shape and x.dtype is out.dtype:
            return x
        p = x.producer
        if p is None or p.op not in ("reshape", "squeeze", "unsqueeze"):
            return None
        x = p.inputs[0]
    return None


def _all_zero(graph: Graph, node: Node) -> Value | None:
    """Padding by nothing."""
    pads = node.inputs[1].known_ints() if node.inputs[1] is not None else None
    return node.inputs[0] if pads is not None and not np.any(pads != 0) else None


def _whole_slice(graph: Graph, node: Node) -> Value | None:
    """A slice of everything: same shape, and no negative step."""
    steps = node.inputs[4] if len(node.inputs) > 4 else None
    known = None if steps is None else steps.known_ints()
    if steps is not None and (known is None or any(s != 1 for s in known.flat)):
        return None
    return node.inputs[0]


def _single(graph: Graph, node: Node) -> Value | None:
    inputs = [v for v in node.present_inputs() if v.dims and 0 not in v.dims]
    return inputs[0] if len(inputs) == 1 else None


_STEPS = ("round", "floor", "ceil", "trunc")


def _quotient(graph: Graph, node: Node) -> Value | None:
    """A division by a constant, as the product with its inverse: within half a unit in the last
    place of the quotient, so not before what makes steps of it."""
    x, y = node.inputs
    out = node.output
    if node.attrs.fn != "div" or x is None or y is None or y.const is None or out.dtype is not f32:
        return None
    if not y.const.size or np.any(y.const == 0) or not np.all(np.isfinite(y.const)):
        return None
    inverse = 1 / y.const
    if not np.all(np.isfinite(inverse)) or np.any(np.abs(inverse) < np.finfo(np.float32).tiny):
        return None
    for user in out.users:
        to_steps = user.op in ("quantize", "dynamic_quantize", "dynamic_quantize_linear") or (
            user.op == "cast" and not user.output.dtype.is_float
        )
        if to_steps or (user.op == "unary" and user.attrs.fn in _STEPS):
            return None
    inputs = [x, graph.constant(inverse.astype(np.float32), y.name)]
    return emit(graph, "binary", inputs, node.name, before=node, fn="mul").output


_RULES: dict[str, Callable[[Graph, Node], Value | None]] = {
    "binary": _quotient,
    "identity": _input,
    "cast": _cast,
    "expand": _input,
    "reshape": _view,
    "squeeze": _view,
    "unsqueeze": _view,
    "transpose": _transpose,
    "pad": _all_zero,
    "tile": _input,
    "strided_slice": _whole_slice,
    "concat": _single,
}
