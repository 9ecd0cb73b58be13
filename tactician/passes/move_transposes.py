"""Moves transposes from channels-first to channels-last towards the outputs until they cancel.

    'relu(transpose(x)) => transpose(relu(x))'

Front ends whose images have their channels last put transposes around every convolution. Moved
through pointwise ops, padding, concatenation, reductions, slices and axes of size 1, they meet
the next convolution's and `simplify` removes both. What reaches a flattened dense layer
disappears into the order of its weights' rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np

from ..ir import dims as D
from ..ir.graph import Graph, Node, Value
from ..ops import emit
from .manager import Pass


class MoveTransposes(Pass):
    """Transposes behind convolutions move down."""

    name = "move_transposes"

    def run(self, graph: Graph) -> bool:
        changed = False
        for node in list(graph.nodes):
            rule = _RULES.get(node.op)
            if rule is None or len(node.outputs) != 1 or node.outputs[0].shape is None:
                continue
            if node in graph.nodes and any(_source(v) is not None for v in node.present_inputs()):
                changed |= rule(graph, node)
        return changed


def _to_last(rank: int) -> tuple[int, ...]:
    return (0, *range(2, rank), 1)


def _source(v: Value | None) -> Value | None:
    """What ``v`` is the channels-last form of, if it is one."""
    p = v.producer if v is not None else None
    if p is None or p.op != "transpose" or len(p.attrs.perm) < 3:
        return None
    if tuple(p.attrs.perm) != _to_last(len(p.attrs.perm)):
        return None
    x = p.inputs[0]
    return x if x is not None and (x.rank > 3 or _of_images(x)) else None


_FOLLOWED = frozenset("unary binary activation scale cast select pooling squeeze unsqueeze reduce "
                      "concat pad strided_slice softmax".split())


def _of_images(x: Value) -> bool:
    """Whether a rank-3 value comes from a convolution along one axis: other transposes of two axes
    belong to matrix products, which take them as flags."""
    for _ in range(32):
        p = x.producer
        if p is None:
            return False
        if p.op in ("convolution", "deconvolution"):
            return True
        if p.op not in _FOLLOWED or p.inputs[0] is None:
            return False
        x = p.inputs[0]
    return False


def _emit(graph: Graph, node: Node, inputs: list[Value | None], **changes: Any) -> Value:
    """The node again, with other inputs and some other attributes."""
    attrs = {f.name: getattr(node.attrs, f.name) for f in fields(node.attrs)} | changes
    new = emit(graph, node.op, inputs, node.name, before=node, source=node.source, **attrs)
    new.meta = dict(node.meta)
    new.output.meta = {k: v for k, v in node.output.meta.items() if k not in ("onnx_name",)}
    return new.output


def _finish(graph: Graph, node: Node, new: Value, perm: tuple[int, ...]) -> bool:
    """Replaces a node by the transpose of ``new``."""
    if perm != tuple(range(len(perm))):
        out = emit(graph, "transpose", [new], f"{node.name} transposed", before=node,
                   source=node.source, perm=perm).output
    elif any(node.output is o for o in graph.outputs):
        out = emit(graph, "identity", [new], node.name, before=node, source=node.source).output
    else:
        out = new
    out.name, out.meta = node.output.name, {**node.output.meta, **out.meta}
    graph.replace_uses(node.output, out)
    graph.remove(node)
    return True


# --- pointwise ----------------------------------------------------------------------------


def _pointwise(graph: Graph, node: Node) -> bool:
    """All operands channels-first, if that needs no more work than is saved."""
    rank = node.output.rank
    inputs: list[Value | None] = []
    for v in node.inputs:
        if v is None or v.rank == 0:
            inputs.append(v)
            continue
        x = _source(v)
        if x is None or v.rank != rank:
            x = _operand(graph, node, v, rank)
        if x is None:
            return False
        inputs.append(x)
    return _finish(graph, node, _emit(graph, node, inputs), _to_last(rank))


def _operand(graph: Graph, node: Node, v: Value, rank: int) -> Value | None:
    """Another operand with channels first: constants, and what broadcasts, at next to no cost."""
    to_first = (0, rank - 1, *range(1, rank - 1))
    missing = rank - v.rank
    if v.const is not None:
        if v.const.size == 1:
            return graph.constant(v.const.reshape(()), v.name)
        data = v.const.reshape((1,) * missing + v.const.shape).transpose(to_first)
        return graph.constant(np.ascontiguousarray(data), v.name)
    dims = (1,) * missing + v.dims
    if sum(d == 1 for d in dims[1:-1]) < rank - 2:
        return None
    if missing:
        axes = graph.constant(np.arange(missing, dtype=np.int64))
        v = emit(graph, "unsqueeze", [v, axes], v.name, before=node).output
    return emit(graph, "transpose", [v], f"{v.name} channels first", before=node,
                perm=to_first).output


def _scale(graph: Graph, node: Node) -> bool:
    axis, rank = node.attrs.axis, node.output.rank
    rest = node.inputs[1:]
    if axis < 0 and any(v is not None and v.numel != 1 for v in rest):
        return False
    axis = _to_last(rank)[axis] if axis >= 0 else axis
    new = _emit(graph, node, [_source(node.inputs[0]), *rest], axis=axis)
    return _finish(graph, node, new, _to_last(rank))


# --- others -------------------------------------------------------------------------------


def _concat(graph: Graph, node: Node) -> bool:
    sources = [_source(v) for v in node.inputs]
    if any(x is None for x in sources):
        return False
    perm = _to_last(node.output.rank)
    new = _emit(graph, node, sources, axis=perm[node.attrs.axis])
    return _finish(graph, node, new, perm)


def _reduce(graph: Graph, node: Node) -> bool:
    x = _source(node.inputs[0])
    if x is None:
        return False
    perm = _to_last(x.rank)
    given = node.attrs.axes or tuple(range(x.rank))
    axes = tuple(sorted(perm[a] for a in given))
    new = _emit(graph, node, [x, *node.inputs[1:]], axes=axes)
    if node.attrs.keepdims:
        return _finish(graph, node, new, perm)
    kept = [perm[i] for i in range(x.rank) if i not in given]
    return _finish(graph, node, new, tuple(sorted(kept).index(k) for k in kept))


def _softmax(graph: Graph, node: Node) -> bool:
    x = _source(node.inputs[0])
    if x is None:
        return False
    perm = _to_last(x.rank)
    axes = tuple(sorted(perm[a] for a in node.attrs.axes))
    return _finish(graph, node, _emit(graph, node, [x], axes=axes), perm)


def _pad(graph: Graph, node: Node) -> bool:
    x, pads = _source(node.inputs[0]), node.inputs[1]
    if x is None or pads is None or pads.const is None:
        return False
    perm = _to_last(x.rank)
    back = [perm.index(k) for k in range(x.rank)]
    given = pads.const.reshape(2, -1)[:, back].reshape(-1)
    new = _emit(graph, node, [x, graph.constant(np.ascontiguousarray(given)), *node.inputs[2:]])
    return _finish(graph, node, new, perm)


def _strided_slice(graph: Graph, node: Node) -> bool:
    x, axes = _source(node.inputs[0]), node.inputs[3] if len(node.inputs) > 3 else None
    if x is None or axes is None or axes.const is None:
        return False
    perm = _to_last(x.rank)
    moved = np.array([perm[int(a)] for a in axes.const.reshape(-1)], np.int64)
    new = _emit(graph, node, [x, *node.inputs[1:3], graph.constant(moved), *node.inputs[4:]])
    return _finish(graph, node, new, perm)


def _known_axes(node: Node, rank: int) -> list[int] | None:
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if axes is None or axes.const is None:
        return None
    return sorted(int(a) % rank for a in axes.const.reshape(-1))


def _squeeze(graph: Graph, node: Node) -> bool:
    x = _source(node.inputs[0])
    axes = None if x is None else _known_axes(node, x.rank)
    if x is None or not axes or 0 in axes:
        return False
    perm = _to_last(x.rank)
    moved = graph.constant(np.array(sorted(perm[a] for a in axes), np.int64))
    new = _emit(graph, node, [x, moved])
    kept = [perm[i] for i in range(x.rank) if i not in axes]
    return _finish(graph, node, new, tuple(sorted(kept).index(k) for k in kept))


def _unsqueeze(graph: Graph, node: Node) -> bool:
    """New axes between batch and channels are spatial ones."""
    x, rank = _source(node.inputs[0]), node.output.rank
    axes = None if x is None else _known_axes(node, rank)
    if x is None or not axes or axes[0] == 0 or axes[-1] == rank - 1:
        return False
    moved = graph.constant(np.array([a + 1 for a in axes], np.int64))
    return _finish(graph, node, _emit(graph, node, [x, moved]), _to_last(rank))


def _reshape(graph: Graph, node: Node) -> bool:
    """A flattening whose only readers multiply it with constant matrices."""
    x = _source(node.inputs[0])
    if x is None or node.output.rank != 2 or not D.is_static(*x.dims[1:]):
        return False
    if node.output.dims[0] != x.dims[0] or any(node.output is o for o in graph.outputs):
        return False
    users = list(node.output.users)
    if not users or any(not _dense(u, node.output) for u in users):
        return False
    flat = _emit(graph, node, [x, *node.inputs[1:]])
    # position in channels-first order of each row of the weights
    order = np.arange(int(D.product(x.dims[1:]))).reshape([int(d) for d in x.dims[1:]])
    back = np.argsort(order.transpose(*(p - 1 for p in _to_last(x.rank)[1:])).reshape(-1))
    for u in users:
        w = u.inputs[1]
        assert w is not None and w.const is not None
        axis = 1 if u.attrs.tb == "transpose" else 0
        rows = graph.constant(np.ascontiguousarray(w.const.take(back, axis)), w.name)
        rows.meta = dict(w.meta)
        u.set_input(1, rows)
        u.set_input(0, flat)
    graph.remove(node)
    return True


def _dense(user: Node, v: Value) -> bool:
    w = user.inputs[1] if len(user.inputs) > 1 else None
    return (user.op == "matmul" and user.inputs[0] is v and user.attrs.ta == "none"
            and w is not None and w.const is not None and w.rank == 2
            and user.attrs.tb in ("none", "transpose"))


_RULES: dict[str, Callable[[Graph, Node], bool]] = {
    **dict.fromkeys("unary binary activation select cast".split(), _pointwise),
    "scale": _scale,
    "concat": _concat,
    "reduce": _reduce,
    "softmax": _softmax,
    "pad": _pad,
    "strided_slice": _strided_slice,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "reshape": _reshape,
}
