"""Recognizes scaled dot-product attention written out in parts.

    'softmax(q @ transpose(k) * scale + mask) @ v => attention(q, k, v, mask)'

Exporters put the scale on the scores, on q, on k, or on both, as a product or a quotient; masks
are added, or select between scores and a very low number. Heads are split and merged by reshapes
and transposes, cut out of one projection, and repeated where several queries share keys. All of
that is read off the strides (`strides.trace`): operands become ``[batch, length, heads * size]``
wherever the heads lie side by side in memory, so that nothing is transposed. The operands of
attention nodes that networks have themselves are read in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

import numpy as np

from ..ir import dims as D
from ..ir.dtypes import b1
from ..ir.graph import Graph, Node, Value
from ..ops import emit
from .manager import Pass
from .strides import (
    Axis,
    Readers,
    Trace,
    merged,
    reshape_to,
    scaled,
    slice_extents,
    slice_rows,
    trace,
)

_LOWEST = -1e30  # what exporters write for minus infinity is below this


class FindAttention(Pass):
    """Attention from its parts.

    Args:
        takes: Whether the target has a tactic for an attention node; others stay in parts.
    """

    name = "find_attention"

    def __init__(self, takes: Callable[[Node], bool]):
        self.takes = takes

    def run(self, graph: Graph) -> bool:
        changed = False
        readers = Readers(graph)
        for node in list(graph.nodes):
            if node.op == "attention":
                changed |= _straighten(graph, node, self.takes)
                continue
            found = _match(readers, node)
            if found is None:
                continue
            count = len(graph.nodes)
            result = _rewrite(graph, node, found, self.takes)
            if result is None:
                _drop_new(graph, count, node)
                continue
            graph.replace_uses(node.output, result)
            result.name = node.output.name
            changed = True
        return changed


@dataclass
class _Seen:
    """A mask that selects between scores and ``fill``; true (or false) where keys are seen."""

    cond: Value
    fill: float
    negated: bool


@dataclass
class _Found:
    """The parts of one attention; ``q``, ``k`` and ``v`` as the products read them."""

    q: Value
    k: Value
    v: Value
    q_flipped: bool  # whether the last two axes are the other way round
    k_flipped: bool
    factor: float = 1.0
    masks: list[_Seen | Value] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)


# --- matching ---------------------------------------------------------------------------------


def _match(readers: Readers, node: Node) -> _Found | None:
    """``node`` as the product of weights and values."""
    if node.op != "matmul" or node.attrs.ta != "none" or node.attrs.tb != "none":
        return None
    weights, v = node.inputs
    assert weights is not None and v is not None
    if v.rank not in (3, 4) or weights.rank != v.rank or not v.dtype.is_float:
        return None
    chain: list[Node] = [node]
    p = _inner(readers, weights, chain)
    p = _guarded(readers, p, chain)
    if p is None or p.op != "softmax" or p.attrs.log:
        return None
    if tuple(a % v.rank for a in p.attrs.axes) != (v.rank - 1,):
        return None
    found = _Found(v, v, v, False, False)
    p = _inner(readers, p.inputs[0], chain)
    while p is not None and p.op in ("binary", "select"):
        p = _peel(readers, p, found, chain)
    if not _aligned(found, v):
        return None
    if p is None or p.op != "matmul" or p.attrs.ta == "vector" or p.attrs.tb == "vector":
        return None
    q, k = p.inputs
    assert q is not None and k is not None
    if q.rank != v.rank or k.rank != v.rank or q.dtype is not v.dtype or k.dtype is not v.dtype:
        return None
    found.q, found.q_flipped = q, p.attrs.ta == "transpose"
    found.k, found.k_flipped = k, p.attrs.tb != "transpose"
    found.layers = [n.name for n in reversed(chain) if n.name]
    return found if _batches_agree(q, k, v) else None


def _aligned(found: _Found, v: Value) -> bool:
    """Whether masks mean the same beside scores of the products' own rank: leading dimensions of
    extent 1 were added in between at most."""
    shapes = [(m.cond if isinstance(m, _Seen) else m).dims for m in found.masks]
    return all(d == 1 for s in shapes for d in s[: max(0, len(s) - v.rank)])


def _batches_agree(*values: Value) -> bool:
    return all(v.dims[:-2] == values[0].dims[:-2] for v in values)


def _inner(readers: Readers, v: Value | None, chain: list[Node]) -> Node | None:
    """The producer of a value nobody else reads, casts between floats skipped."""
    while v is not None and v.producer is not None:
        if len(readers.of(v)) != 1 or v in readers.outputs:
            return None
        chain.append(v.producer)
        source = v.producer.inputs[0]
        if v.producer.op == "cast" and source is not None:
            if not (source.dtype.is_float and v.dtype.is_float):
                return None
        elif source is None or not _same_but_ones(v.producer, source):
            return v.producer
        v = source
    return None


def _same_but_ones(node: Node, source: Value) -> bool:
    """Whether a node only adds or removes leading dimensions of extent 1."""
    if node.op not in ("reshape", "squeeze", "unsqueeze"):
        return False
    return _core(source) == _core(node.output)


def _core(v: Value) -> tuple[D.DimLike, ...]:
    dims = list(v.dims)
    while dims and dims[0] == 1:
        del dims[0]
    return tuple(dims)


def _guarded(readers: Readers, p: Node | None, chain: list[Node]) -> Node | None:
    """Skips ``where(isnan(weights), 0, weights)``: attention gives 0 to rows that see nothing."""
    if p is None or p.op != "select":
        return p
    cond, zero, weights = p.inputs
    test = None if cond is None else cond.producer
    if test is None or test.op != "unary" or test.attrs.fn != "isnan" or weights is None:
        return None
    users = set(readers.of(weights)) == {p, test} and (cond is None or readers.of(cond) == [p])
    if not users or test.inputs[0] is not weights or weights.producer is None:
        return None
    if zero is None or zero.const is None or np.any(zero.const != 0):
        return None
    chain.append(weights.producer)
    return weights.producer


def _peel(readers: Readers, p: Node, found: _Found, chain: list[Node]) -> Node | None:
    """Takes a scale or a mask off the scores; returns what they were before."""
    product = scaled(p)
    if product is not None:
        found.factor *= product[1]
        return _inner(readers, product[0], chain)
    if found.factor != 1.0:
        return None  # a mask below a scale would be scaled too
    if p.op == "select":
        return _peel_select(readers, p, found, chain)
    if p.attrs.fn != "add":
        return None
    for scores, mask in (p.inputs, p.inputs[::-1]):
        assert scores is not None and mask is not None
        if scores.shape == p.output.shape and _fits(mask, scores) and _is_scores(scores):
            found.masks.append(mask)
            return _inner(readers, scores, chain)
    return None


def _peel_select(readers: Readers, p: Node, found: _Found, chain: list[Node]) -> Node | None:
    cond, a, b = p.inputs
    assert cond is not None and a is not None and b is not None
    for scores, low, negated in ((a, b, False), (b, a, True)):
        fill = _fill(low)
        if fill is None or scores.shape != p.output.shape or not _is_scores(scores):
            continue
        if not _fits(cond, scores):
            return None
        found.masks.append(_Seen(cond, fill, negated))
        return _inner(readers, scores, chain)
    return None


def _fill(v: Value) -> float | None:
    if v.const is None or not v.const.size or not v.dtype.is_float:
        return None
    x = v.const.reshape(-1)
    low = float(x[0])
    return low if low < _LOWEST and np.all(x == x[0]) else None


def _fits(mask: Value, scores: Value) -> bool:
    """Whether attention's own broadcasting means the same: every key has its element."""
    extra = mask.dims[: max(0, mask.rank - 4)]
    return (
        1 <= mask.rank <= scores.rank and mask.dims[-1] == scores.dims[-1]
        and (mask.dtype is b1 or mask.dtype.is_float) and all(d == 1 for d in extra)
    )


def _is_scores(v: Value) -> bool:
    """Whether a product of matrices lies behind a value."""
    x: Value | None = v
    while x is not None and x.producer is not None:
        p = x.producer
        if p.op == "matmul":
            return True
        if p.op == "select":
            x = next((i for i in p.inputs[1:] if i is not None and i.const is None), None)
        elif p.op in ("binary", "cast"):
            shape = x.shape
            x = next((i for i in p.inputs if i is not None and i.shape == shape), None)
        elif p.inputs and p.inputs[0] is not None and _same_but_ones(p, p.inputs[0]):
            x = p.inputs[0]
        else:
            return False
    return False


# --- rewriting --------------------------------------------------------------------------------


def _rewrite(
    graph: Graph, node: Node, found: _Found, takes: Callable[[Node], bool]
) -> Value | None:
    q = _Operand(graph, node, found.q, found.q_flipped, "q")
    k = _Operand(graph, node, found.k, found.k_flipped, "k")
    v = _Operand(graph, node, found.v, False, "v")
    if v.t.factor != 1.0:
        v.t = Trace(v.source, [])  # a scale on values is not a scale on scores
    heads = q.heads
    shared = k.shared_heads()
    kv_heads = shared if shared is not None and shared == v.shared_heads() else heads
    keys = [k.value(kv_heads), v.value(kv_heads)]
    if None in keys and kv_heads != heads:  # repeated in memory after all
        kv_heads, keys = heads, [k.value(heads), v.value(heads)]
    operands = [q.value(heads), *keys]
    if any(x is None for x in operands):
        return None
    mask, causal = _mask(graph, node, found)
    scale = found.factor * q.used_factor * k.used_factor
    inputs = [*operands, *([] if mask is None else [mask])]
    flat = operands[0] is not None and operands[0].rank == 3
    counts = [
        int(h) if x is not None and x.rank == 3 else 0  # type: ignore[arg-type]
        for x, h in zip(operands, (heads, kv_heads, kv_heads), strict=True)
    ]
    new = emit(
        graph, "attention", inputs, node.name, before=node, scale=scale, causal=causal,
        q_heads=counts[0], kv_heads=max(counts[1:]),
    )
    new.meta = {**node.meta, "layers": tuple(found.layers)}
    if not takes(new):
        return None
    return _as_before(graph, node, new.output, flat, heads)


def _straighten(graph: Graph, node: Node, takes: Callable[[Node], bool]) -> bool:
    """Reads 4-D operands where they come from, if that makes queries rows of all heads."""
    q, k, v = node.inputs[:3]
    assert q is not None and k is not None and v is not None
    a = node.attrs
    rest = list(node.inputs[3:])
    if q.rank != 4 or k.rank != 4 or v.rank != 4 or a.outputs != 1 or any(rest[1:]):
        return False
    size, count = q.dims[3], len(graph.nodes)
    if not D.is_static(size):
        return False
    parts = [_Operand(graph, node, x, False, n) for x, n in ((q, "q"), (k, "k"), (v, "v"))]
    if parts[2].t.factor != 1.0:
        parts[2].t = Trace(v, [])
    operands = [p.value(p.heads) for p in parts]
    if operands[0] is None or operands[0].rank != 3 or None in operands:
        _drop_new(graph, count, node)
        return False
    scale = 1 / float(int(size)) ** 0.5 if a.scale is None else a.scale  # type: ignore[arg-type]
    kv_heads = parts[1].heads if any(x is not None and x.rank == 3 for x in operands[1:]) else 0
    attrs = replace(
        a, scale=scale * parts[0].used_factor * parts[1].used_factor,
        q_heads=int(parts[0].heads), kv_heads=int(kv_heads),  # type: ignore[arg-type]
    )
    new = emit(
        graph, "attention", [*operands, *rest], node.name, before=node,
        **{f.name: getattr(attrs, f.name) for f in fields(attrs)},
    )
    new.meta = dict(node.meta)
    result = _as_before(graph, node, new.output, True, parts[0].heads) if takes(new) else None
    if result is None:
        _drop_new(graph, count, node)
        return False
    graph.replace_uses(node.output, result)
    result.name = node.output.name
    graph.remove(node)
    return True


def _as_before(
    graph: Graph, node: Node, y: Value, flat: bool, heads: D.DimLike
) -> Value | None:
    """The result in the shape that the product had."""
    out, name = node.output.dims, f"{node.name}.y"
    if flat:
        size = out[-1]
        if len(out) == 3:
            rows = reshape_to(graph, y, (y.dims[1], heads, size), node, name)
            if rows is None:
                return None
            return emit(graph, "transpose", [rows], name, before=node, perm=(1, 0, 2)).output
        split = reshape_to(graph, y, (*y.dims[:2], heads, size), node, name)
        if split is None:
            return None
        return emit(graph, "transpose", [split], name, before=node, perm=(0, 2, 1, 3)).output
    return reshape_to(graph, y, out, node, name)


class _Operand:
    """One operand: where its elements come from, and the value attention is given.

    Attributes:
        dims: ``batch, heads, length, size``; all of a 3-D operand's batch counts as heads.
        used_factor: The product of constants that the operand was multiplied with and that the
            value from `value` leaves out.
    """

    def __init__(self, graph: Graph, node: Node, source: Value, flipped: bool, part: str):
        self.graph, self.node = graph, node
        self.name = f"{node.name}.{part}"
        self.source, self.flipped = source, flipped
        self.t = trace(source)
        dims, axes = list(source.dims), [merged(a) for a in self.t.axes]
        if flipped:
            dims[-2:] = dims[:-3:-1]
            axes[-2:] = axes[:-3:-1]
        if len(dims) == 3:
            dims.insert(0, 1)
            axes.insert(0, [])
        self.dims, self.axes = dims, axes
        self.used_factor = 1.0

    @property
    def heads(self) -> D.DimLike:
        return self.dims[1]

    def shared_heads(self) -> D.DimLike | None:
        """How many heads there are in memory, if each is repeated for neighbouring queries."""
        if not self.t.axes:
            return None
        axis = self.axes[1]
        if axis and axis[-1][1] == 0 and axis[-1][0] != 1:
            return D.product(n for n, _ in axis[:-1])
        return None

    def value(self, heads: D.DimLike) -> Value | None:
        """The operand with ``heads`` heads, 3-D if that copies nothing."""
        self.used_factor = 1.0
        rows = self._rows(heads) if self.t.axes else None
        if rows is not None:
            self.used_factor = self.t.factor
            return rows
        if self.t.axes and heads != self.dims[1]:
            whole = self._whole(heads)
            if whole is not None:
                self.used_factor = self.t.factor
                return whole
        x: Value | None = self.source
        if self.flipped:
            perm = [*range(self.source.rank - 2), self.source.rank - 1, self.source.rank - 2]
            x = emit(self.graph, "transpose", [self.source], self.name, before=self.node,
                     perm=tuple(perm)).output
        assert x is not None
        if heads != self.dims[1]:
            return None
        return reshape_to(self.graph, x, tuple(self.dims), self.node, self.name)

    def _rows(self, heads: D.DimLike) -> Value | None:
        """``[batch, length, heads * size]`` where heads lie side by side in rows."""
        batch, _, length, size = self.dims
        by_batch, by_head, by_row, by_size = self.axes
        if heads != self.dims[1]:
            by_head = by_head[:-1]
        if not D.is_static(heads, size) or by_size != _axis(size, 1):
            return None
        if by_head != _axis(heads, size) or len(by_row) > 1 or len(by_batch) > 1:
            return None
        width, total = heads * size, self.t.root.numel
        if by_row:
            pitch = by_row[0][1]
        else:
            pitch = by_batch[0][1] if by_batch else total
        if by_batch != _axis(batch, length * pitch) or batch * length * pitch != total:
            return None
        offset = self.t.offset
        if not D.is_static(pitch, offset) or int(offset) + int(width) > int(pitch):  # type: ignore
            return None
        rows = reshape_to(self.graph, self.t.root, (batch, length, pitch), self.node, self.name)
        if rows is None or pitch == width:
            return rows
        return slice_rows(
            self.graph, rows, int(offset), int(width), self.node, self.name  # type: ignore
        )

    def _whole(self, heads: D.DimLike) -> Value | None:
        """``[batch, heads, length, size]`` where that is the root's own order."""
        dims = (self.dims[0], heads, *self.dims[2:])
        strides = (heads * dims[2] * dims[3], dims[2] * dims[3], dims[3], 1)
        axes = [self.axes[0], self.axes[1][:-1], *self.axes[2:]]
        own = all(a == _axis(d, s) for a, d, s in zip(axes, dims, strides, strict=True))
        if not own or self.t.offset != 0 or D.product(dims) != self.t.root.numel:
            return None
        return reshape_to(self.graph, self.t.root, dims, self.node, self.name)


def _axis(extent: D.DimLike, stride: D.DimLike) -> Axis:
    return [] if extent == 1 else [(extent, stride)]


# --- masks ------------------------------------------------------------------------------------


def _mask(graph: Graph, node: Node, found: _Found) -> tuple[Value | None, bool]:
    """One mask for all that were found, and whether the rest is causal."""
    left = [m for m in found.masks if not _is_causal(m, found)]
    for i, m in enumerate(left):
        fitting = _of_rank_4(graph, node, m.cond if isinstance(m, _Seen) else m)
        left[i] = replace(m, cond=fitting) if isinstance(m, _Seen) else fitting
    causal = len(left) < len(found.masks)
    if len(left) == 1 and isinstance(left[0], _Seen) and np.isneginf(left[0].fill):
        return _seen(graph, node, left[0]), causal
    total: Value | None = None
    for m in left:
        x = _additive(graph, node, m, found.q) if isinstance(m, _Seen) else m
        if total is not None:
            x = emit(graph, "binary", [total, x], f"{node.name}.mask", before=node, fn="add").output
        total = x
    return total, causal


def _of_rank_4(graph: Graph, node: Node, mask: Value) -> Value:
    if mask.rank <= 4:
        return mask
    dims = mask.dims[mask.rank - 4 :]
    if mask.const is not None:
        return graph.constant(mask.const.reshape(dims), mask.name)  # type: ignore[arg-type]
    fitting = reshape_to(graph, mask, dims, node, f"{node.name}.mask")
    return mask if fitting is None else fitting


def _seen(graph: Graph, node: Node, m: _Seen) -> Value:
    if not m.negated:
        return m.cond
    if m.cond.const is not None:
        return graph.constant(~m.cond.const.astype(bool), "seen")
    return emit(graph, "unary", [m.cond], f"{node.name}.seen", before=node, fn="not").output


def _additive(graph: Graph, node: Node, m: _Seen, like: Value) -> Value:
    """A mask to add: 0 where keys are seen."""
    dt = like.dtype.np
    low = np.array(m.fill).astype(dt).reshape((1,) * m.cond.rank)
    zero = np.zeros_like(low)
    pair = (low, zero) if m.negated else (zero, low)
    if m.cond.const is not None:
        return graph.constant(np.where(m.cond.const, *pair), "mask")
    inputs = [m.cond, *(graph.constant(x) for x in pair)]
    return emit(graph, "select", inputs, f"{node.name}.mask", before=node).output


def _is_causal(m: _Seen | Value, found: _Found) -> bool:
    """Whether a constant mask, or the corner of one, shows each query the keys up to its own
    place."""
    mask = m.cond if isinstance(m, _Seen) else m
    c = _corner_of(mask)
    if c is None or c.ndim < 2 or any(d != 1 for d in (*c.shape[:-2], *mask.dims[:-2])):
        return False
    rows, keys = c.shape[-2:]
    queries = found.q.dims[-1 if found.q_flipped else -2]
    if rows != keys or mask.dims[-2:] != (queries, queries) or queries == 1:
        return False
    c = c.reshape(rows, keys)
    lower = np.tril(np.ones((rows, keys), bool))
    if isinstance(m, _Seen):
        return bool(np.array_equal(c.astype(bool), lower != m.negated))
    x = c.astype(np.float64)
    return bool(np.all(x[lower] == 0) and np.all(x[~lower] < _LOWEST))


def _corner_of(mask: Value) -> np.ndarray | None:
    """The constant that a mask is, or is cut from beginning at its first element."""
    v: Value | None = mask
    while v is not None and v.const is None:
        p = v.producer
        if p is None or p.op not in ("strided_slice", "slice") or p.inputs[0] is None:
            return None
        cuts = slice_extents(p, p.inputs[0])
        if cuts is None or any((start, step) != (0, 1) for start, _, step in cuts.values()):
            return None
        v = p.inputs[0]
    return None if v is None else v.const


def _drop_new(graph: Graph, count: int, node: Node) -> None:
    """Removes what an abandoned rewrite added before ``node``."""
    added = len(graph.nodes) - count
    at = graph.nodes.index(node)
    for new in reversed(graph.nodes[at - added : at]):
        graph.remove(new)
