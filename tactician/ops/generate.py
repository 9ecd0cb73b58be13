"""Ops that make tensors from little: fill, range, eye, windows, random numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir import dims as D
from ..ir import dtypes as T
from ..ir import expr as E
from ..ir.dtypes import DType
from ..ir.graph import Node, TensorType, Value
from . import _math as M
from . import _shapes as S
from .registry import Kind, Op, OpError, register

FILLS = ("linspace", "random_uniform", "random_normal", "constant")


def _generator(seed: int | None) -> np.random.Generator:
    """Fresh random numbers without a seed, the same ones each run with one."""
    return np.random.default_rng(seed)


@dataclass(frozen=True)
class FillAttrs:
    """What to fill with.

    Attributes:
        fn: ``linspace``: ``alpha + sum of beta[k] * i[k]``; ``random_uniform`` in
            ``[alpha, beta)``; ``random_normal`` with mean alpha, deviation beta; ``constant``:
            alpha.
        to: Element type; None: that of alpha, else f32.
        seed: Of the random numbers; None for new ones each run.
    """

    fn: str = "linspace"
    to: DType | None = None
    seed: int | None = None


@register
class Fill(Op):
    """A tensor of a given shape, filled. Inputs ``shape, alpha?, beta?`` (defaults 0 and 1)."""

    name = "fill"
    kind = Kind.INDEX_MAP
    Attrs = FillAttrs

    def is_pure(self, node: Node) -> bool:
        return not node.attrs.fn.startswith("random")

    def infer(self, node: Node) -> Sequence[TensorType]:
        shape, a = S.operand(node, 0), node.attrs
        if a.fn not in FILLS:
            raise OpError(f"unknown fill {a.fn!r}; use one of {FILLS}")
        rank = S.vector_length(shape, "the shape")
        dims = S.ints(shape)
        if dims is None:
            dims = list(S.data_dims(node, rank))
        if any(not isinstance(d, D.Dim) and d < 0 for d in dims):
            raise OpError(f"negative size in shape {S.fmt(dims)}")
        alpha = S.optional(node, 1)
        to = a.to or (T.f32 if alpha is None else alpha.dtype)
        if a.fn.startswith("random") and not to.is_float:
            raise OpError(f"random numbers are floats, not {to}; cast them afterwards")
        self._check_beta(node, rank)
        t = TensorType(to, tuple(dims), self._content(node, dims, to))
        return [t]

    def _check_beta(self, node: Node, rank: int) -> None:
        beta = S.optional(node, 2)
        n = 1 if beta is None else S.vector_length(beta, "beta")
        if node.attrs.fn == "linspace" and beta is not None and n != max(rank, 1) and rank > 1:
            raise OpError(f"beta {S.show(beta)} needs one step for each of {rank} dimensions")

    def _content(self, node: Node, dims: list[D.DimLike], to: DType) -> Any:
        """Known contents of a constant fill: shapes are computed with them."""
        small = D.is_static(*dims) and int(D.product(dims)) <= 1024
        if node.attrs.fn != "constant" or to.kind not in "iub" or not small:
            return None
        value = 0 if S.optional(node, 1) is None else S.scalar_int(node.inputs[1])
        if value is None:
            return None
        out = np.empty(tuple(dims), dtype=object)
        out.fill(value)
        return out

    def reference(self, node: Node, *inputs: Any) -> Any:
        shape, a, to = tuple(S.to_ints(inputs[0])), node.attrs, node.output.dtype
        alpha, beta = ((*inputs[1:], None, None)[k] for k in range(2))
        low: Any = np.zeros((), to.np) if alpha is None else np.asarray(alpha).reshape(-1)[0]
        if a.fn == "constant":
            return np.full(shape, low, to.np)
        if a.fn == "linspace":
            return self._linspace(shape, low, beta, to)
        high = 1.0 if beta is None else float(np.asarray(beta).reshape(-1)[0])
        r = _generator(a.seed)
        if a.fn == "random_uniform":
            return r.uniform(float(low), high, shape)
        return r.normal(float(low), high, shape)

    def _linspace(self, shape: tuple[int, ...], low: Any, beta: Any, to: DType) -> Any:
        wide = M.compute_dtype(to).np
        steps = np.ones(1) if beta is None else np.asarray(beta).reshape(-1)
        out = np.full(shape, np.asarray(low).astype(wide), wide)
        for k, at in enumerate(np.indices(shape, sparse=True)):
            step = steps[min(k, len(steps) - 1)].astype(wide)
            out = out + at.astype(wide) * step
        return out

    def stages(self, node: Node) -> list[E.Stage] | None:
        a, out = node.attrs, node.output
        if a.fn.startswith("random") or S.is_data_dependent(node):
            return None
        vs = E.iter_vars(out.dims)
        wide = M.compute_dtype(out.dtype)
        e = _scalar(S.optional(node, 1), 0, wide)
        if a.fn == "linspace":
            beta = S.optional(node, 2)
            steps = 1 if beta is None or not beta.rank else int(beta.dims[0])  # type: ignore[arg-type]
            for k, v in enumerate(vs):
                step = _scalar(beta, 1, wide, min(k, steps - 1))
                e = E.add(e, E.mul(E.cast(v, wide), step))
        return [E.Stage(out, vs, E.cast(e, out.dtype))]


def _scalar(v: Value | None, default: float, dt: DType, k: int = 0) -> E.Expr:
    """Element ``k`` of a scalar or vector operand, or a default, as type ``dt``."""
    if v is None:
        return E.const(default if dt.is_float else int(default), dt)
    if v.const is not None:
        item = v.const.reshape(-1)[k]
        return E.const(M.convert(np.asarray(item), dt)[()], dt)
    return E.cast(E.load(v, [E.idx(k)] if v.rank else []), dt)


@register
class Range(Op):
    """``start, start + delta, …`` up to but not including ``limit``. Inputs are scalars."""

    name = "range"
    kind = Kind.INDEX_MAP
    symbolic = True

    def infer(self, node: Node) -> Sequence[TensorType]:
        vs = [S.operand(node, i) for i in range(3)]
        for v in vs:
            if v.dtype is not vs[0].dtype or S.vector_length(v, "an operand") != 1:
                raise OpError(f"start, limit and delta must be numbers of one type, not "
                              f"{', '.join(map(S.show, vs))}")
        return [TensorType(vs[0].dtype, (self._length(node, vs),))]

    def _length(self, node: Node, vs: list[Value]) -> D.DimLike:
        known = [S.scalar_int(v) for v in vs]
        if all(v.const is not None for v in vs):
            return _range_length(*(v.const.reshape(-1)[0] for v in vs))  # type: ignore[union-attr]
        start, limit, delta = known
        if start is None or limit is None or not isinstance(delta, int):
            return S.data_dim(node, 0)
        if delta == 0:
            raise OpError("a range needs a delta other than 0")
        span = limit - start if delta > 0 else start - limit
        n = D.ceil_div(span, abs(delta))
        return n if S.at_least(n, 0) else D.dim_max(n, 0)

    def reference(self, node: Node, *inputs: Any) -> Any:
        if any(v.dtype == object for v in inputs):
            start, limit, delta = (v.reshape(-1)[0] for v in inputs)
            n = int(D.ceil_div(limit - start, delta))
            return np.array([start + k * delta for k in range(max(n, 0))], dtype=object)
        start, limit, delta = (M.widen(v).reshape(-1)[0] for v in inputs)
        n = _range_length(start, limit, delta)
        wide = np.asarray(start).dtype
        return start + np.arange(n).astype(wide) * delta

    def stages(self, node: Node) -> list[E.Stage] | None:
        if S.is_data_dependent(node):
            return None
        out = node.output
        vs = E.iter_vars(out.dims)
        wide = M.compute_dtype(out.dtype)
        start, delta = (self._operand(S.operand(node, i), wide) for i in (0, 2))
        e = E.add(start, E.mul(E.cast(vs[0], wide), delta))
        return [E.Stage(out, vs, E.cast(e, out.dtype))]

    def _operand(self, v: Value, wide: DType) -> E.Expr:
        known = S.scalar_int(v)
        return _scalar(v, 0, wide) if known is None else E.cast(E.idx(known), wide)


def _range_length(start: Any, limit: Any, delta: Any) -> int:
    if delta == 0:
        raise OpError("a range needs a delta other than 0")
    if isinstance(start, (int, np.integer)):
        return max(0, -((int(start) - int(limit)) // int(delta)))
    return max(0, math.ceil((float(limit) - float(start)) / float(delta)))


@dataclass(frozen=True)
class EyeAttrs:
    """``k``: which diagonal; ``to``: element type, None for the input's."""

    k: int = 0
    to: DType | None = None


@register
class Eye(Op):
    """1 on a diagonal and 0 elsewhere, in the shape of matrix ``x``."""

    name = "eye"
    kind = Kind.INDEX_MAP
    Attrs = EyeAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        x = S.operand(node, 0)
        if x.rank != 2:
            raise OpError(f"{S.show(x)} must be a matrix")
        return [TensorType(node.attrs.to or x.dtype, x.dims)]

    def reference(self, node: Node, *inputs: Any) -> Any:
        rows, cols = inputs[0].shape
        return np.eye(rows, cols, node.attrs.k, dtype=np.bool_).astype(node.output.dtype.np)

    def stages(self, node: Node) -> list[E.Stage] | None:
        out = node.output
        r, c = vs = E.iter_vars(out.dims)
        on = E.compare("eq", c, E.add(r, E.idx(node.attrs.k)))
        wide = M.compute_dtype(out.dtype)
        e = E.select(on, E.const(1, wide), E.const(0, wide))
        return [E.Stage(out, vs, E.cast(e, out.dtype))]


@dataclass(frozen=True)
class WindowAttrs:
    """``fn``: hann, hamming or blackman; ``periodic``: for spectral analysis, else symmetric."""

    fn: str = "hann"
    periodic: bool = True
    to: DType = T.f32


# Coefficients of cos(2 pi k n / N).
_WINDOWS = {
    "hann": (0.5, -0.5),
    "hamming": (25 / 46, -21 / 46),
    "blackman": (0.42, -0.5, 0.08),
}


@register
class Window(Op):
    """A window function of ``size`` points."""

    name = "window"
    kind = Kind.INDEX_MAP
    Attrs = WindowAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        size, a = S.operand(node, 0), node.attrs
        if a.fn not in _WINDOWS:
            raise OpError(f"unknown window {a.fn!r}; use one of {tuple(_WINDOWS)}")
        if S.vector_length(size, "size") != 1:
            raise OpError(f"size {S.show(size)} must be one number")
        n = S.scalar_int(size)
        return [TensorType(a.to, (S.data_dim(node, 0) if n is None else n,))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        size, a = S.to_ints(inputs[0])[0], node.attrs
        span = max(size if a.periodic else size - 1, 1)
        phase = 2 * np.pi * np.arange(size) / span
        return sum(c * np.cos(k * phase) for k, c in enumerate(_WINDOWS[a.fn]))

    def stages(self, node: Node) -> list[E.Stage] | None:
        if S.is_data_dependent(node):
            return None
        out, a, f = node.output, node.attrs, T.f64
        (v,) = vs = E.iter_vars(out.dims)
        n = out.dims[0] if a.periodic else out.dims[0] - 1
        span = E.cast(E.binary("max", E.idx(n), E.idx(1)), f)
        phase = E.div(E.mul(E.cast(v, f), E.const(2 * math.pi, f)), span)
        e: E.Expr = E.const(_WINDOWS[a.fn][0], f)
        for k, c in enumerate(_WINDOWS[a.fn][1:], start=1):
            turn = E.unary("cos", E.mul(phase, E.const(float(k), f)))
            e = E.add(e, E.mul(turn, E.const(c, f)))
        return [E.Stage(out, vs, E.cast(e, out.dtype))]


@dataclass(frozen=True)
class MultinomialAttrs:
    """``samples`` per row; ``to``: i32 or i64; ``seed``: None for new numbers each run."""

    samples: int = 1
    to: DType = T.i32
    seed: int | None = None


@register
class Multinomial(Op):
    """Draws classes from rows ``[batch, classes]`` of unnormalized log probabilities."""

    name = "multinomial"
    kind = Kind.OPAQUE
    Attrs = MultinomialAttrs
    pure = False

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, a = S.operand(node, 0), node.attrs
        if x.rank != 2 or not x.dtype.is_float:
            raise OpError(f"{S.show(x)} must be float [batch, classes]")
        if not a.to.is_int:
            raise OpError(f"classes are integers, not {a.to}")
        return [TensorType(a.to, (x.dims[0], a.samples))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, a = inputs[0].astype(np.float64), node.attrs
        p = np.exp(x - np.max(x, axis=1, keepdims=True, initial=-np.inf))
        cumulative = np.cumsum(p / p.sum(axis=1, keepdims=True), axis=1)
        draws = _generator(a.seed).random((x.shape[0], a.samples))
        picked = (draws[:, :, None] >= cumulative[:, None, :]).sum(axis=2)
        return np.minimum(picked, x.shape[1] - 1)


@dataclass(frozen=True)
class BernoulliAttrs:
    """``to``: element type, None for the input's; ``seed``: None for new numbers each run."""

    to: DType | None = None
    seed: int | None = None


@register
class Bernoulli(Op):
    """1 with probability ``x``, else 0, for each element."""

    name = "bernoulli"
    kind = Kind.OPAQUE
    Attrs = BernoulliAttrs
    pure = False

    def infer(self, node: Node) -> Sequence[TensorType]:
        x = S.operand(node, 0)
        if not x.dtype.is_float:
            raise OpError(f"probabilities {S.show(x)} must be floats")
        return [TensorType(node.attrs.to or x.dtype, x.dims)]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x = inputs[0].astype(np.float64)
        return _generator(node.attrs.seed).random(x.shape) < x
