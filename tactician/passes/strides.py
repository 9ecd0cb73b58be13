"""Where the elements of a value come from, through reshapes, transposes, slices and the like.

`trace` follows a value up to one that is really computed and says how its axes lie in that value's
memory: every axis is a list of digits ``(extent, stride)``, major first, as in a number system with
mixed bases. An axis of extent 1 has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..ir import dims as D
from ..ir.graph import Graph, Node, Value
from ..ops import emit
from ..ops.slicing import slice_bounds

Digit = tuple[D.DimLike, D.DimLike]
Axis = list[Digit]

_VIEWS = frozenset({"reshape", "squeeze", "unsqueeze"})


@dataclass
class Trace:
    """A value's elements in the memory of ``root`` times ``factor``.

    Attributes:
        root: The value they are read from.
        axes: Digits of each of the value's axes.
        offset: Where the first element is.
        factor: Product of the constants it was multiplied with on the way.
    """

    root: Value
    axes: list[Axis]
    offset: D.DimLike = 0
    factor: float = 1.0
    path: list[Node] = field(default_factory=list)


def trace(v: Value) -> Trace:
    """Follows ``v`` to what it is read from."""
    path: list[Node] = []
    x = v
    while True:
        source = _moved(x)
        if source is None:
            break
        assert x.producer is not None
        path.append(x.producer)
        x = source
    t = _whole(x)
    for node in reversed(path):
        t = _through(node, t)
    return t


def _whole(v: Value) -> Trace:
    axes: list[Axis] = []
    stride: D.DimLike = 1
    for d in reversed(v.dims):
        axes.insert(0, [] if d == 1 else [(d, stride)])
        stride = stride * d
    return Trace(v, axes)


def scalar(v: Value | None) -> float | None:
    """The number that a value holds, if it holds one known number."""
    if v is None or v.const is None or v.const.size != 1 or v.const.dtype.kind not in "iuf":
        return None
    return float(v.const.reshape(-1)[0])


class Readers:
    """Who needs a value's elements: nodes that only compute sizes known beforehand don't."""

    def __init__(self, graph: Graph):
        wanted = set(graph.outputs)
        self.outputs = set(graph.outputs)
        self._needed: set[Node] = set()
        for node in reversed(graph.nodes):
            if node.outputs and not any(v in wanted for v in node.outputs):
                continue
            self._needed.add(node)
            wanted.update(v for v in node.present_inputs() if v.content is None)

    def of(self, v: Value) -> list[Node]:
        """Nodes that read ``v``, each as often as it does."""
        return [n for n, times in v.users.items() if n in self._needed for _ in range(times)]

    def alone(self, v: Value, reader: Node) -> bool:
        """Whether ``reader`` is all that reads ``v``."""
        return set(self.of(v)) == {reader} and v not in self.outputs


def scaled(node: Node | None) -> tuple[Value, float] | None:
    """(x, factor) if ``node`` multiplies or divides x by a known number."""
    if node is None or node.op != "binary" or node.attrs.fn not in ("mul", "div"):
        return None
    a, b = node.inputs
    for x, other in ((a, b), (b, a)) if node.attrs.fn == "mul" else ((a, b),):
        c = scalar(other)
        if c is None or x is None or x.shape != node.output.shape or not x.dtype.is_float:
            continue
        if node.attrs.fn == "mul":
            return x, c
        return (x, 1 / c) if c else None
    return None


def _moved(v: Value) -> Value | None:
    """What ``v`` is made of, if its producer only moves elements or scales them."""
    node = v.producer
    if node is None or v.shape is None:
        return None
    product = scaled(node)
    if product is not None:
        return product[0]
    moves = node.op in _VIEWS or node.op in (
        "transpose", "strided_slice", "slice", "gather", "expand", "identity"
    )
    source = node.inputs[0] if moves else None
    return source if source is not None and source.const is None else None


def _through(node: Node, t: Trace) -> Trace:
    """The trace of a node's result from that of its input; a new root if that can't be said."""
    product = scaled(node)
    if product is not None:
        return Trace(t.root, t.axes, t.offset, t.factor * product[1], [*t.path, node])
    offset = t.offset
    axes: list[Axis] | None = None
    if node.op in _VIEWS:
        axes = regroup([d for axis in t.axes for d in axis], node.output.dims)
    elif node.op == "transpose":
        axes = [t.axes[p] for p in node.attrs.perm]
    elif node.op == "identity":
        axes = t.axes
    elif node.op == "expand":
        axes = _expanded(node, t.axes)
    else:
        cut = _cut(node, t)
        if cut is not None:
            axes, offset = cut
    if axes is None:
        return _whole(node.output)
    return Trace(t.root, axes, offset, t.factor, [*t.path, node])


def merged(axis: Sequence[Digit]) -> Axis:
    """The same axis in as few digits as possible."""
    out: Axis = []
    for n, s in axis:
        if out and out[-1][1] == s * n:
            out[-1] = (out[-1][0] * n, s)
        else:
            out.append((n, s))
    return out


def regroup(digits: Sequence[Digit], dims: Sequence[D.DimLike]) -> list[Axis] | None:
    """Digits in row-major order distributed over axes of the given extents."""
    rest = merged(digits)[::-1]
    axes: list[Axis] = []
    for d in dims:
        axis: Axis = []
        need = d
        while need != 1:
            if not rest:
                return None
            n, s = rest.pop()
            if n == need:
                axis.append((n, s))
                need = 1
                continue
            inner = D.floor_div(n, need)
            if inner * need == n:  # the digit's major part
                axis.append((need, s * inner))
                rest.append((inner, s))
                need = 1
                continue
            more = D.floor_div(need, n)
            if more * n != need:
                return None
            axis.append((n, s))
            need = more
        axes.append(merged(axis))
    return None if rest else axes


def _expanded(node: Node, axes: list[Axis]) -> list[Axis]:
    out = node.output.dims
    source = node.inputs[0]
    assert source is not None
    lead = len(out) - len(axes)
    result: list[Axis] = [[] if d == 1 else [(d, 0)] for d in out[:lead]]
    for axis, old, new in zip(axes, source.dims, out[lead:], strict=True):
        result.append([(new, 0)] if old == 1 and new != 1 else axis)
    return result


def _cut(node: Node, t: Trace) -> tuple[list[Axis], D.DimLike] | None:
    """Axes and offset after a slice, or a gather of one position."""
    source = node.inputs[0]
    assert source is not None
    axes, offset = list(t.axes), t.offset
    bounds = slice_extents(node, source)
    if bounds is None:
        return None
    for k, (start, count, step) in bounds.items():
        if (start, step) == (0, 1) and count == source.dims[k]:
            continue
        digits = merged(axes[k])
        if not digits:
            return None
        s = digits[0][1]
        inner = D.product(e for e, _ in digits[1:])
        first, many = D.floor_div(start, inner), D.floor_div(count, inner)
        if step != 1 and inner != 1:
            return None
        if first * inner != start or many * inner != count:
            return None
        offset = offset + first * s
        axes[k] = [*([] if many == 1 else [(many, s * step)]), *digits[1:]]
    if node.op == "gather":
        index = node.inputs[1]
        if index is not None and index.rank == 0:
            del axes[node.attrs.axis % source.rank]
    return axes, offset


_Bounds = dict[int, tuple[D.DimLike, D.DimLike, int]]


def slice_extents(node: Node, source: Value) -> _Bounds | None:
    """(first, count, step) along each axis that a node cuts."""
    known = [None if v is None else v.known_ints() for v in node.inputs[1:]]
    if node.op == "gather":
        index = known[0]
        if index is None or index.size != 1 or index.ndim > 1 or node.attrs.batch_dims:
            return None
        k = node.attrs.axis % source.rank
        at = index.reshape(-1)[0]
        size = source.dims[k]
        if not D.is_static(at, size) or not -int(size) <= int(at) < int(size):  # type: ignore
            return None
        return {k: (int(at) % int(size), 1, 1)}  # type: ignore[arg-type]
    if node.op == "slice":
        if node.attrs.mode != "strict" or any(x is None for x in known[:3]):
            return None
        start, size, step = (list(x.reshape(-1)) for x in known[:3])  # type: ignore[union-attr]
        if any(not D.is_static(s) or int(s) < 1 for s in step):
            return None
        return {k: (start[k], size[k], int(step[k])) for k in range(source.rank)}
    given = (*known, None, None)[:4]
    if given[0] is None or given[1] is None:
        return None
    starts, ends = list(given[0].reshape(-1)), list(given[1].reshape(-1))
    axes = list(range(len(starts))) if given[2] is None else [int(a) for a in given[2].reshape(-1)]
    steps = [1] * len(starts) if given[3] is None else [int(a) for a in given[3].reshape(-1)]
    if any(s < 1 for s in steps) or (len(node.inputs) > 3 and node.inputs[3] and given[2] is None):
        return None
    out: _Bounds = {}
    for k, b, e, s in zip(axes, starts, ends, steps, strict=True):
        first, count = slice_bounds(source.dims[k % source.rank], b, e, s)
        out[k % source.rank] = (first, count, s)
    return out


def reshape_to(
    graph: Graph, v: Value, dims: Sequence[D.DimLike], before: Node, name: str
) -> Value | None:
    """``v`` in another shape of as many elements, or None if the shape can't be said."""
    if v.dims == tuple(dims):
        return v
    target = []
    for i, d in enumerate(dims):
        if isinstance(d, D.Dim):
            d = 0 if i < v.rank and v.dims[i] == d else -1
        target.append(int(d))
    if target.count(-1) > 1:
        return None
    shape = graph.constant(np.array(target, np.int64), f"{name}_shape")
    return emit(graph, "reshape", [v, shape], name, before=before, zero_copies=True).output


def slice_rows(graph: Graph, v: Value, start: int, count: int, before: Node, name: str) -> Value:
    """Elements ``start`` … of the last axis."""
    def ints(x: int) -> Value:
        return graph.constant(np.array([x], np.int64))

    inputs = [v, ints(start), ints(start + count), ints(v.rank - 1)]
    return emit(graph, "strided_slice", inputs, name, before=before).output
