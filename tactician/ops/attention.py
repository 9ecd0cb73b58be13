"""Scaled dot-product attention, its masked softmax, and rotary position embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir import dims as D
from ..ir import expr as E
from ..ir.dtypes import DType, b1, i64
from ..ir.expr import Expr, Stage, Var
from ..ir.graph import Graph, Node, TensorType, Value
from . import _shapes as S
from ._numeric import Array, accumulator, operands, shape_text, widen
from .registry import Kind, Op, OpError, emit, register, temp


@dataclass(frozen=True)
class AttentionAttrs:
    """
    Attributes:
        scale: Factor on the scores; None means ``1 / sqrt(head size)``.
        causal: Query ``i`` sees key ``j`` only if ``j <= i + offset``, where ``offset`` keys come
            before the first query: the past's length, or ``kv_lens - queries``, or 0.
        softcap: Scores become ``softcap * tanh(scores / softcap)``; 0 leaves them.
        left, right: Keys further than this to the left (right) of the query are not seen;
            -1 means no limit.
        q_heads, kv_heads: Head counts of 3-D operands; 0 for 4-D operands.
        normalize: False leaves the softmax out.
        outputs: 1: y; 3: and the present key and value; 4: and the scores.
        scores: What the fourth output holds: 0 scaled scores, 1 after softcap, 2 after masking,
            3 after softmax.
    """

    scale: float | None = None
    causal: bool = False
    softcap: float = 0.0
    left: int = -1
    right: int = -1
    q_heads: int = 0
    kv_heads: int = 0
    normalize: bool = True
    outputs: int = 1
    scores: int = 0


def _split_heads(v: Value, heads: int, what: str) -> tuple[D.DimLike, ...]:
    """The 4-D shape ``[batch, heads, length, size]`` of an operand."""
    if v.rank == 4:
        return v.dims
    if v.rank != 3 or heads < 1:
        raise OpError(
            f"{what} {shape_text(v)} must be [batch, heads, length, size], or [batch, length, "
            f"heads * size] with the number of heads given (it is {heads})"
        )
    if D.is_static(v.dims[2]) and int(v.dims[2]) % heads:
        raise OpError(f"{what} {shape_text(v)} does not divide into {heads} heads")
    return (v.dims[0], heads, v.dims[1], D.floor_div(v.dims[2], heads))


@register
class Attention(Op):
    """``softmax(q kᵀ * scale + mask) v``: TensorRT's IAttention, ONNX's Attention.

    Inputs ``q, k, v, mask?, past_key?, past_value?, kv_lens?``: ``[batch, heads, length, size]``
    or, with head counts given, ``[batch, length, heads * size]``, each by its own rank (the result
    has the queries' form; `regions.heads` says how kernels address them). Query heads may be a
    multiple of key heads. A mask is b1 (true: seen) or added to the scores, and broadcasts to
    ``[batch, heads, queries, keys]``; missing keys at its end are not seen. Rows that see no key
    give 0.
    """

    name = "attention"
    kind = Kind.CONTRACTION
    Attrs = AttentionAttrs

    def num_outputs(self, node: Node) -> int:
        return int(node.attrs.outputs)

    def infer(self, node: Node) -> Sequence[TensorType]:
        q, k, v, mask, past_k, past_v = operands(node, 3, 6)
        a = node.attrs
        if any(x.dtype is not q.dtype for x in (k, v)) or not q.dtype.is_float:
            raise OpError(f"q, k, v must have one floating-point type, but are {shape_text(q)}, "
                          f"{shape_text(k)}, {shape_text(v)}")
        if a.outputs not in (1, 3, 4):
            raise OpError(f"outputs is {a.outputs}, but must be 1, 3 or 4")
        if (past_k is None) != (past_v is None):
            raise OpError("give past_key and past_value together")
        b, heads, rows, size = _split_heads(q, a.q_heads, "q")
        _, kv_heads, keys, k_size = _split_heads(k, a.kv_heads, "k")
        _, v_heads, _, v_size = _split_heads(v, a.kv_heads, "v")
        S.unify(size, k_size, node, "head sizes of q and k")
        S.unify(kv_heads, v_heads, node, "head counts of k and v")
        if D.is_static(heads, kv_heads) and int(heads) % int(kv_heads):
            raise OpError(f"{heads} query heads are not a multiple of {kv_heads} key heads")
        if past_k is not None:
            if past_k.rank != 4:
                raise OpError(f"past_key {shape_text(past_k)} must be [batch, heads, length, "
                              f"size]")
            keys = keys + past_k.dims[2]
        if mask is not None and mask.dtype is not b1 and not mask.dtype.is_float:
            raise OpError(f"mask {shape_text(mask)} must be b1 or {q.dtype}")
        y = (b, heads, rows, v_size) if q.rank == 4 else (b, rows, a.q_heads * v_size)
        types = [
            TensorType(q.dtype, y),
            TensorType(k.dtype, (b, kv_heads, keys, k_size)),
            TensorType(v.dtype, (b, kv_heads, keys, v_size)),
            TensorType(q.dtype, (b, heads, rows, keys)),
        ]
        return types[: a.outputs]

    def reference(self, node: Node, *inputs: Any) -> Any:
        q, k, v, mask, past_k, past_v, lens = (*inputs, None, None, None, None)[:7]
        a, flat = node.attrs, np.ndim(q) == 3

        def heads(x: Any, n: int) -> Array:
            x = widen(x)
            return x.reshape(*x.shape[:2], n, -1).transpose(0, 2, 1, 3) if x.ndim == 3 else x

        q, k, v = heads(q, a.q_heads), heads(k, a.kv_heads), heads(v, a.kv_heads)
        past = 0
        if past_k is not None:
            past = past_k.shape[2]
            k = np.concatenate([widen(past_k), k], axis=2)
            v = np.concatenate([widen(past_v), v], axis=2)
        present = (k, v)
        repeats = q.shape[1] // k.shape[1]
        k, v = np.repeat(k, repeats, axis=1), np.repeat(v, repeats, axis=1)
        scale = q.dtype.type(1 / np.sqrt(q.shape[3]) if a.scale is None else a.scale)
        raw = np.matmul(q * scale, k.swapaxes(2, 3))
        capped, biased = _biased(raw, mask, lens, past, a)
        weights = _softmax_rows(biased) if a.normalize else np.where(biased == -np.inf, 0, biased)
        y = np.matmul(weights, v)
        if flat:
            y = y.transpose(0, 2, 1, 3).reshape(y.shape[0], y.shape[2], -1)
        shown = (raw, capped, biased, weights)[a.scores]
        return (y, *present, shown)[: a.outputs]

    def decompose(self, node: Node, graph: Graph) -> list[Value] | None:
        return _decompose_attention(node, graph)


def _biased(raw: Array, mask: Any, lens: Any, past: int, a: Any) -> tuple[Array, Array]:
    """Scores after softcap, and after masking too (unseen keys are -inf)."""
    dt = raw.dtype.type
    rows, keys = raw.shape[-2:]
    capped = dt(a.softcap) * np.tanh(raw / dt(a.softcap)) if a.softcap > 0 else raw
    offset: Any = past
    t = np.arange(keys)
    seen: Any = np.ones((1, 1, rows, keys), dtype=bool)
    if lens is not None:
        lens = np.asarray(lens).reshape(-1, 1, 1, 1)
        seen = seen & (t < lens)
        offset = past if past else lens - rows
    place = np.arange(rows)[:, None] + offset
    if a.causal:
        seen = seen & (t <= place)
    if a.left >= 0:
        seen = seen & (place - t <= a.left)
    if a.right >= 0:
        seen = seen & (t - place <= a.right)
    biased = capped
    if mask is not None:
        mask = np.asarray(mask)
        missing = keys - mask.shape[-1]
        if mask.dtype == bool:
            pads = [(0, 0)] * (mask.ndim - 1) + [(0, missing)]
            seen = seen & (np.pad(mask, pads) if missing > 0 else mask)
        else:
            mask = widen(mask)
            pads = [(0, 0)] * (mask.ndim - 1) + [(0, missing)]
            mask = np.pad(mask, pads, constant_values=-np.inf) if missing > 0 else mask
            biased = biased + mask
    return capped, np.where(seen, biased, dt(-np.inf))


def _softmax_rows(x: Array) -> Array:
    top = np.max(x, axis=-1, keepdims=True, initial=-np.inf)
    blind = np.isneginf(top)
    with np.errstate(all="ignore"):
        e = np.exp(x - np.where(blind, 0, top).astype(x.dtype))
        total = e.sum(axis=-1, keepdims=True)
        return np.where(blind, 0, e / np.where(total == 0, 1, total)).astype(x.dtype)


def _decompose_attention(node: Node, graph: Graph) -> list[Value] | None:
    """Two matrix products around a `masked_softmax`; heads that share keys become rows."""
    q, k, v, mask, past_k, past_v, lens = operands(node, 3, 7)
    a = node.attrs
    heads, kv_heads = (_split_heads(x, n, "")[1] for x, n in ((q, a.q_heads), (k, a.kv_heads)))
    size = _split_heads(q, a.q_heads, "q")[3]
    if not D.is_static(heads, kv_heads) or (a.scale is None and not D.is_static(size)):
        return None
    if not a.normalize or (a.outputs == 4 and a.scores in (1, 2)):
        return None
    flat = q.rank == 3

    def make(op: str, inputs: Sequence[Value | None], part: str, **attrs: Any) -> Value:
        return emit(graph, op, inputs, f"{node.name}.{part}", before=node, **attrs).output

    def reshape(x: Value, shape: Sequence[int], part: str) -> Value:
        target = graph.constant(np.array(shape, np.int64), f"{node.name}.{part}_shape")
        return make("reshape", [x, target], part, zero_copies=True)

    def split(x: Value, n: int, part: str) -> Value:
        if x.rank == 4:
            return x
        return make("transpose", [reshape(x, (0, 0, n, -1), part)], part, perm=(0, 2, 1, 3))

    q, k, v = split(q, a.q_heads, "q"), split(k, a.kv_heads, "k"), split(v, a.kv_heads, "v")
    if past_k is not None:
        k = make("concat", [past_k, k], "present_key", axis=2)
        v = make("concat", [past_v, v], "present_value", axis=2)
    scale = 1 / np.sqrt(float(size)) if a.scale is None else a.scale
    factor = graph.constant(np.array(scale, q.dtype.np).reshape(1, 1, 1, 1), f"{node.name}.scale")
    scaled = make("binary", [q, factor], "scaled", fn="mul")
    grouped = heads != kv_heads
    if grouped:
        scaled = reshape(scaled, (0, int(kv_heads), -1, 0), "grouped")
    scores = make("matmul", [scaled, k], "scores", tb="transpose")
    if grouped:
        scores = reshape(scores, (0, int(heads), -1, 0), "scores_by_head")
    weights = make(
        "masked_softmax", [scores, mask, lens, past_k], "softmax",
        causal=a.causal, softcap=a.softcap, left=a.left, right=a.right,
    )
    rows = reshape(weights, (0, int(kv_heads), -1, 0), "weights") if grouped else weights
    y = make("matmul", [rows, v], "values")
    if grouped:
        y = reshape(y, (0, int(heads), -1, 0), "values_by_head")
    if flat:
        y = reshape(make("transpose", [y], "merge", perm=(0, 2, 1, 3)), (0, 0, -1), "merged")
    return [y, k, v, weights if a.scores == 3 else scores][: a.outputs]


# --- masked softmax -------------------------------------------------------------------------


@dataclass(frozen=True)
class MaskedSoftmaxAttrs:
    """As in `AttentionAttrs`."""

    causal: bool = False
    softcap: float = 0.0
    left: int = -1
    right: int = -1


@register
class MaskedSoftmax(Op):
    """The softmax of attention: inputs ``scores [batch, heads, queries, keys], mask?, kv_lens?,
    past?``. Of ``past`` only the length (dimension 2) counts. `Attention` decomposes into it."""

    name = "masked_softmax"
    kind = Kind.REDUCTION
    Attrs = MaskedSoftmaxAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        x = S.operand(node, 0)
        if x.rank != 4 or not x.dtype.is_float:
            raise OpError(f"scores {shape_text(x)} must be floating-point [batch, heads, queries, "
                          f"keys]")
        mask = S.optional(node, 1)
        if mask is not None and not 1 <= mask.rank <= 4:
            raise OpError(f"mask {shape_text(mask)} must broadcast to scores {shape_text(x)}")
        return [TensorType(x.dtype, x.dims)]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, mask, lens, past = (*inputs, None, None, None)[:4]
        length = 0 if past is None else past.shape[2]
        return _softmax_rows(_biased(widen(x), mask, lens, length, node.attrs)[1])

    def stages(self, node: Node) -> list[Stage] | None:
        return _masked_softmax_stages(node)


def _masked_softmax_stages(node: Node) -> list[Stage]:
    x, out = S.operand(node, 0), node.output
    work = accumulator(x.dtype)
    top, total = (temp(node, s, work, x.dims[:3]) for s in ("max", "sum"))
    lowest, zero = E.const(-float("inf"), work), E.const(0.0, work)

    def shifted(row: Sequence[Expr], t: Expr) -> Expr:
        peak = E.load(top, row)
        safe = E.select(E.compare("eq", peak, lowest), zero, peak)
        return E.unary("exp", E.sub(_masked_score(node, [*row, t], work), safe))

    rv, t = E.iter_vars(x.dims[:3]), Var(i64, "t", x.dims[3])
    first = Stage(top, rv, E.reduce_("max", (t,), _masked_score(node, [*rv, t], work)))
    rv, t = E.iter_vars(x.dims[:3]), Var(i64, "t", x.dims[3])
    second = Stage(total, rv, E.reduce_("sum", (t,), shifted(rv, t)))
    ov = E.iter_vars(out.dims)
    norm: Expr = E.load(total, ov[:3])
    norm = E.select(E.compare("eq", norm, zero), E.const(1.0, work), norm)
    return [first, second, Stage(out, ov, E.cast(E.div(shifted(ov[:3], ov[3]), norm), out.dtype))]


def _masked_score(node: Node, at: Sequence[Expr], work: DType) -> Expr:
    """The score at ``[batch, head, query, key]`` after softcap and masking."""
    x, mask, lens, past = operands(node, 1, 4)
    a = node.attrs
    score = E.cast(E.load(x, at), work)
    if a.softcap > 0:
        cap = E.const(a.softcap, work)
        score = E.mul(cap, E.unary("tanh", E.div(score, cap)))
    row, t = at[2], at[3]
    seen: list[Expr] = []
    offset = E.idx(0 if past is None else past.dims[2])
    if lens is not None:
        index = [at[0]] if lens.rank == 1 else [at[0]] + [E.idx(0)] * (lens.rank - 1)
        length = E.cast(E.load(lens, index), i64)
        seen.append(E.compare("lt", t, length))
        if past is None:
            offset = E.sub(length, E.idx(x.dims[2]))
    place = E.add(row, offset)
    if a.causal:
        seen.append(E.compare("le", t, place))
    if a.left >= 0:
        seen.append(E.compare("le", E.sub(place, t), E.idx(a.left)))
    if a.right >= 0:
        seen.append(E.compare("le", E.sub(t, place), E.idx(a.right)))
    if mask is not None:
        value = _mask_load(mask, x, at)
        if mask.dtype is b1:
            seen.append(value)
        else:
            score = E.add(score, E.cast(value, work))
    if not seen:
        return score
    return E.select(E.logical_and(*seen), score, E.const(-float("inf"), work))


def _mask_load(mask: Value, x: Value, at: Sequence[Expr]) -> Expr:
    full = (*x.dims[:3], mask.dims[-1])
    index = S.broadcast_index(mask.dims, at, full)
    if mask.dims[-1] == x.dims[3]:
        return E.load(mask, index)
    guard = E.compare("lt", at[3], E.idx(mask.dims[-1]))
    if mask.dtype is b1:
        return E.load(mask, index, guard, E.const(False, b1))
    return E.load(mask, index, guard, E.const(-float("inf"), mask.dtype))


# --- rotary embedding -----------------------------------------------------------------------


@dataclass(frozen=True)
class RotaryEmbeddingAttrs:
    """
    Attributes:
        interleaved: Pairs are neighbours; otherwise they lie half the rotated size apart.
        rotary_dim: Leading elements of a head that are rotated; 0 means all.
        num_heads: Heads of a 3-D input ``[batch, length, heads * size]``.
    """

    interleaved: bool = False
    rotary_dim: int = 0
    num_heads: int = 0


@register
class RotaryEmbedding(Op):
    """Rotates pairs of elements by position: TensorRT's IRotaryEmbeddingLayer, ONNX's
    RotaryEmbedding. Inputs ``x, cos, sin, position_ids?``; ``cos`` and ``sin`` are ``[positions,
    rotary_dim / 2]`` with position ids ``[batch, length]``, else ``[batch, length,
    rotary_dim / 2]``."""

    name = "rotary_embedding"
    kind = Kind.POINTWISE
    Attrs = RotaryEmbeddingAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, cos, sin, ids = operands(node, 3, 4)
        if not x.dtype.is_float:
            raise OpError(f"x {shape_text(x)} must be floating-point")
        size = _split_heads(x, node.attrs.num_heads, "x")[3]
        if not D.is_static(size):
            raise OpError(f"the head size of x {shape_text(x)} must be fixed")
        turned = node.attrs.rotary_dim or int(size)
        rank = 3 if ids is None else 2
        if turned % 2 or turned > int(size):
            raise OpError(f"rotary_dim {turned} must be even and at most the head size {size}")
        for what, v in (("cos", cos), ("sin", sin)):
            if v.rank != rank or (D.is_static(v.dims[-1]) and v.dims[-1] != turned // 2):
                layout = "[batch, length, " if ids is None else "[positions, "
                raise OpError(f"{what} {shape_text(v)} must be {layout}{turned // 2}]")
        return [TensorType(x.dtype, x.dims)]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, cos, sin, ids = (*inputs, None)[:4]
        x, cos, sin = widen(x), widen(cos), widen(sin)
        flat, shape = x.ndim == 3, x.shape
        if flat:
            x = x.reshape(*shape[:2], node.attrs.num_heads, -1).transpose(0, 2, 1, 3)
        if ids is not None:
            cos, sin = cos[ids], sin[ids]
        cos, sin = cos[:, None], sin[:, None]  # over heads
        turned = node.attrs.rotary_dim or x.shape[3]
        y = x.copy()
        first: Any
        second: Any
        if node.attrs.interleaved:
            first, second = np.s_[..., 0:turned:2], np.s_[..., 1:turned:2]
        else:
            first, second = np.s_[..., : turned // 2], np.s_[..., turned // 2 : turned]
        y[first] = cos * x[first] - sin * x[second]
        y[second] = sin * x[first] + cos * x[second]
        return y.transpose(0, 2, 1, 3).reshape(shape) if flat else y

    def stages(self, node: Node) -> list[Stage] | None:
        x, cos, sin, ids = operands(node, 3, 4)
        a, out = node.attrs, node.output
        size = int(_split_heads(x, a.num_heads, "x")[3])
        turned = a.rotary_dim or size
        work = accumulator(x.dtype)
        ov = E.iter_vars(out.dims)
        last = ov[-1]
        length, d = (ov[1], E.binary("mod", last, E.idx(size))) if x.rank == 3 else (ov[2], last)
        step = 1 if a.interleaved else turned // 2
        lane = E.binary("floordiv" if a.interleaved else "mod", d,
                        E.idx(2 if a.interleaved else turned // 2))
        if a.interleaved:
            first = E.compare("eq", E.binary("mod", d, E.idx(2)), E.idx(0))
        else:
            first = E.compare("lt", d, E.idx(step))
        inside = E.compare("lt", d, E.idx(turned))
        at: list[Expr] = [ov[0], length]
        if ids is not None:
            at = [E.cast(E.load(ids, at), i64)]
        zero = E.const(0.0, cos.dtype)
        c, s = (E.cast(E.load(v, [*at, lane], inside, zero), work) for v in (cos, sin))
        partner = E.select(first, E.add(last, E.idx(step)), E.sub(last, E.idx(step)))
        here = E.cast(E.load(x, ov), work)
        other = E.load(x, [*ov[:-1], partner], inside, E.const(0.0, x.dtype))
        turned_by = E.mul(E.select(first, E.unary("neg", s), s), E.cast(other, work))
        y = E.select(inside, E.add(E.mul(here, c), turned_by), here)
        return [Stage(out, ov, E.cast(y, out.dtype))]
