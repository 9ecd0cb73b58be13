"""Activations with parameters, PReLU and TensorRT's scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir import dtypes as T
from ..ir import expr as E
from ..ir.graph import Node, Shape, TensorType, Value
from . import _math as M
from . import _shapes as S
from .registry import Kind, Op, OpError, register

_GELU = math.sqrt(0.5)
_GELU_TANH = math.sqrt(2 / math.pi)


@dataclass(frozen=True)
class ActivationAttrs:
    """``fn`` with its parameters; what they mean is in `_FORMULAS`' comments."""

    fn: str = "relu"
    alpha: float = 0.0
    beta: float = 0.0


class _Scalars:
    """The arithmetic that one formula is written in: numpy arrays or expressions."""

    def __init__(self, numpy: bool, dt: T.DType):
        self.numpy, self.dt = numpy, dt

    def c(self, v: float, like: Any) -> Any:
        if self.numpy:
            return np.asarray(self._clip(v), self.dt.np)
        return E.const(self._clip(v), self.dt)

    def _clip(self, v: float) -> Any:
        if self.dt.is_float:
            return v
        low, high = M.limits(self.dt)
        return int(min(max(v, low), high))

    def u(self, fn: str, x: Any) -> Any:
        return M.UNARY[fn](x) if self.numpy else E.unary(fn, x)

    def b(self, fn: str, a: Any, b: Any) -> Any:
        if isinstance(a, (int, float)):
            a = self.c(a, b)
        if isinstance(b, (int, float)):
            b = self.c(b, a)
        return M.BINARY[fn](a, b) if self.numpy else E.binary(fn, a, b)

    def where(self, cond: Any, a: Any, b: Any) -> Any:
        if isinstance(a, (int, float)):
            a = self.c(a, b)
        if isinstance(b, (int, float)):
            b = self.c(b, a)
        return np.where(cond, a, b) if self.numpy else E.select(cond, a, b)

    def expm1(self, x: Any) -> Any:
        return np.expm1(x) if self.numpy else self.b("sub", self.u("exp", x), 1.0)

    def softplus(self, x: Any) -> Any:
        """log(1 + exp(x)) as max(x, 0) + log(1 + exp(-|x|)), which cannot overflow."""
        e = self.u("exp", self.u("neg", self.u("abs", x)))
        log = np.log1p(e) if self.numpy else self.u("log", self.b("add", e, 1.0))
        return self.b("add", self.b("max", x, 0.0), log)

    def clip(self, x: Any, low: float, high: float) -> Any:
        return self.b("max", self.b("min", x, high), low)


def _selu(s: _Scalars, x: Any, alpha: float, beta: float) -> Any:
    negative = s.b("mul", s.expm1(x), alpha)
    return s.b("mul", s.where(s.b("gt", x, 0.0), x, negative), beta)


def _gelu_tanh(s: _Scalars, x: Any) -> Any:
    cube = s.b("mul", s.b("mul", x, x), s.b("mul", x, 0.044715))
    t = s.u("tanh", s.b("mul", s.b("add", x, cube), _GELU_TANH))
    return s.b("mul", s.b("mul", x, 0.5), s.b("add", t, 1.0))


def _celu(s: _Scalars, x: Any, a: float) -> Any:
    negative = s.b("mul", s.expm1(s.b("div", x, a)), a)
    return s.b("add", s.b("max", x, 0.0), s.b("min", negative, 0.0))


def _shrink(s: _Scalars, x: Any, a: float, b: float) -> Any:
    below = s.where(s.b("lt", x, -a), s.b("add", x, b), 0.0)
    return s.where(s.b("gt", x, a), s.b("sub", x, b), below)


def _hard_sigmoid(s: _Scalars, x: Any, a: float, b: float) -> Any:
    return s.clip(s.b("add", s.b("mul", x, a), b), 0.0, 1.0)


_FORMULAS: dict[str, Callable[[_Scalars, Any, float, float], Any]] = {
    "relu": lambda s, x, a, b: s.b("max", x, 0.0),
    "sigmoid": lambda s, x, a, b: s.u("sigmoid", x),
    "tanh": lambda s, x, a, b: s.u("tanh", x),
    # x if x >= 0 else alpha * x
    "leaky_relu": lambda s, x, a, b: s.where(s.b("ge", x, 0.0), x, s.b("mul", x, a)),
    # x if x >= 0 else alpha * (exp(x) - 1)
    "elu": lambda s, x, a, b: s.where(s.b("ge", x, 0.0), x, s.b("mul", s.expm1(x), a)),
    # beta * (x if x > 0 else alpha * (exp(x) - 1))
    "selu": _selu,
    # x / (1 + |x|)
    "softsign": lambda s, x, a, b: s.b("div", x, s.b("add", s.u("abs", x), 1.0)),
    # alpha * log(exp(beta * x) + 1)
    "softplus": lambda s, x, a, b: s.b("mul", s.softplus(s.b("mul", x, b)), a),
    # max(alpha, min(beta, x))
    "clip": lambda s, x, a, b: s.clip(x, a, b),
    # max(0, min(1, alpha * x + beta))
    "hard_sigmoid": _hard_sigmoid,
    # alpha * tanh(beta * x)
    "scaled_tanh": lambda s, x, a, b: s.b("mul", s.u("tanh", s.b("mul", x, b)), a),
    # x if x > alpha else 0
    "thresholded_relu": lambda s, x, a, b: s.where(s.b("gt", x, a), x, 0.0),
    # x * (1 + erf(x / sqrt 2)) / 2
    "gelu_erf": lambda s, x, a, b: s.b(
        "mul", s.b("mul", x, 0.5), s.b("add", s.u("erf", s.b("mul", x, _GELU)), 1.0)
    ),
    # x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))) / 2
    "gelu_tanh": lambda s, x, a, b: _gelu_tanh(s, x),
    # x * max(0, min(1, x / 6 + 1/2))
    "hard_swish": lambda s, x, a, b: s.b("mul", x, _hard_sigmoid(s, x, 1 / 6, 0.5)),
    # x * sigmoid(alpha * x)
    "swish": lambda s, x, a, b: s.b("mul", x, s.u("sigmoid", s.b("mul", x, a))),
    # x * tanh(log(1 + exp(x)))
    "mish": lambda s, x, a, b: s.b("mul", x, s.u("tanh", s.softplus(x))),
    # max(0, x) + min(0, alpha * (exp(x / alpha) - 1))
    "celu": lambda s, x, a, b: _celu(s, x, a),
    # x - beta if x > alpha, x + beta if x < -alpha, else 0
    "shrink": _shrink,
}
_ON_INTEGERS = frozenset("relu clip thresholded_relu leaky_relu shrink".split())
ACTIVATIONS = frozenset(_FORMULAS)


@register
class Activation(Op):
    """``fn(x)`` with parameters ``alpha`` and ``beta``."""

    name = "activation"
    kind = Kind.POINTWISE
    Attrs = ActivationAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, fn = S.operand(node, 0), node.attrs.fn
        if fn not in _FORMULAS:
            raise OpError(f"unknown activation {fn!r}; known: {', '.join(sorted(_FORMULAS))}")
        if not x.dtype.is_float and not (x.dtype.is_int and fn in _ON_INTEGERS):
            raise OpError(f"{fn} needs a float operand, not {x.dtype}; cast it first")
        return [TensorType(x.dtype, x.dims)]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, a = M.widen(inputs[0]), node.attrs
        with np.errstate(all="ignore"):
            return _FORMULAS[a.fn](_Scalars(True, T.dtype(x.dtype)), x, a.alpha, a.beta)

    def stages(self, node: Node) -> list[E.Stage] | None:
        x, out, a = S.operand(node, 0), node.output, node.attrs
        vs = E.iter_vars(out.dims)
        wide = M.compute_dtype(x.dtype)
        e = _FORMULAS[a.fn](_Scalars(False, wide), E.cast(E.load(x, vs), wide), a.alpha, a.beta)
        return [E.Stage(out, vs, E.cast(e, out.dtype))]


@register
class PRelu(Op):
    """``x`` where it is not negative, else ``x * slope``; ``slope`` broadcasts to ``x``."""

    name = "prelu"
    kind = Kind.POINTWISE

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, slope = S.operand(node, 0), S.operand(node, 1)
        if x.dtype is not slope.dtype:
            raise OpError(f"{S.show(x)} and slope {S.show(slope)} must have one type")
        shape = S.broadcast(x.dims, slope.dims, node=node)
        if len(shape) != x.rank:
            raise OpError(f"slope {S.show(slope)} does not broadcast to {S.show(x)}")
        return [TensorType(x.dtype, shape)]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, slope = (M.widen(a) for a in inputs)
        with np.errstate(all="ignore"):
            return np.where(x < 0, x * slope, x)

    def stages(self, node: Node) -> list[E.Stage] | None:
        out = node.output
        vs = E.iter_vars(out.dims)
        wide = M.compute_dtype(out.dtype)
        x, slope = (
            E.cast(S.broadcast_load(S.operand(node, i), vs, out.dims), wide) for i in range(2)
        )
        negative = E.compare("lt", x, E.const(0, wide))
        e = E.select(negative, E.mul(x, slope), x)
        return [E.Stage(out, vs, E.cast(e, out.dtype))]


@dataclass(frozen=True)
class ScaleAttrs:
    """``axis``: where 1-D parameters lie; -1: parameters are scalars or of ``x``'s shape."""

    axis: int = -1


@register
class Scale(Op):
    """``(x * scale + shift) ** power``, inputs ``x, shift?, scale?, power?``."""

    name = "scale"
    kind = Kind.POINTWISE
    Attrs = ScaleAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, axis = S.operand(node, 0), node.attrs.axis
        if not x.dtype.is_float:
            raise OpError(f"scale needs a float operand, not {S.show(x)}; cast it first")
        if axis >= 0:
            S.axis_of(axis, x.rank)
        for i in (1, 2, 3):
            p = S.optional(node, i)
            if p is None:
                continue
            if p.dtype is not x.dtype:
                raise OpError(f"{S.show(p)} must have the type of {S.show(x)}")
            self._check_parameter(node, x, p)
        return [TensorType(x.dtype, x.dims)]

    def _check_parameter(self, node: Node, x: Value, p: Value) -> None:
        axis = node.attrs.axis
        if axis >= 0 and p.rank == 1:
            if p.dims[0] != 1:
                S.unify(p.dims[0], x.dims[axis], node, f"length of {S.show(p)} and axis {axis}")
            return
        if len(S.broadcast(x.dims, p.dims, node=node)) != x.rank:
            raise OpError(f"{S.show(p)} has more dimensions than {S.show(x)}")

    def _shape(self, node: Node, shape: Shape, rank: int) -> Shape:
        axis = node.attrs.axis
        if axis < 0 or len(shape) != 1:
            return shape
        return (*shape, *([1] * (rank - axis - 1)))

    def reference(self, node: Node, *inputs: Any) -> Any:
        x = M.widen(inputs[0])
        params = [
            None if p is None else M.widen(p).reshape(self._shape(node, p.shape, x.ndim))
            for p in (*inputs[1:], None, None, None)[:3]
        ]
        shift, scale, power = params
        with np.errstate(all="ignore"):
            y = x if scale is None else x * scale
            y = y if shift is None else y + shift
            return y if power is None else np.power(y, power)

    def stages(self, node: Node) -> list[E.Stage] | None:
        x, out, axis = S.operand(node, 0), node.output, node.attrs.axis
        vs = E.iter_vars(out.dims)
        wide = M.compute_dtype(out.dtype)

        def parameter(i: int) -> E.Expr | None:
            p = S.optional(node, i)
            if p is None:
                return None
            if axis >= 0 and p.rank == 1:
                at: E.Expr = E.idx(0) if p.dims[0] == 1 else vs[axis]
                return E.cast(E.load(p, [at]), wide)
            return E.cast(S.broadcast_load(p, vs, out.dims), wide)

        e = E.cast(E.load(x, vs), wide)
        for i, fn in ((2, "mul"), (1, "add"), (3, "pow")):
            p = parameter(i)
            e = e if p is None else E.binary(fn, e, p)
        return [E.Stage(out, vs, E.cast(e, out.dtype))]
