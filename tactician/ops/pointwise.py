"""Elementwise ops: unary and binary functions, select, cast, identity, assertion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir import dims as D
from ..ir import dtypes as T
from ..ir import expr as E
from ..ir.dtypes import DType
from ..ir.graph import Node, TensorType
from . import _math as M
from . import _shapes as S
from . import _symbolic as Y
from .registry import Kind, Op, OpError, register

_LOGICAL = frozenset("and or xor not".split())
_BITWISE = frozenset("bitand bitor bitxor bitnot shl shr".split())


@dataclass(frozen=True)
class UnaryAttrs:
    """``fn``: a name from `expr.UNARY`."""

    fn: str = "neg"


def _check_unary(fn: str, dt: DType) -> None:
    if fn not in E.UNARY:
        raise OpError(f"unknown function {fn!r}; known: {', '.join(sorted(E.UNARY))}")
    if fn == "not":
        fits, wanted = dt is T.b1, "bool"
    elif fn == "bitnot":
        fits, wanted = dt.is_int, "an integer"
    elif fn in M.ANY_NUMBER:
        fits, wanted = dt.is_float or dt.is_int, "a number"
    else:
        fits, wanted = dt.is_float, "a float"
    if not fits:
        raise OpError(f"{fn} needs {wanted} operand, not {dt}; cast it first")


@register
class Unary(Op):
    """``fn(x)``, element by element; `round` is half to even."""

    name = "unary"
    kind = Kind.POINTWISE
    Attrs = UnaryAttrs
    symbolic = True
    symbolic_floats = True

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, fn = S.operand(node, 0), node.attrs.fn
        _check_unary(fn, x.dtype)
        return [TensorType(T.b1 if fn in ("isinf", "isnan") else x.dtype, x.dims)]

    def reference(self, node: Node, *inputs: Any) -> Any:
        (x,), fn = inputs, node.attrs.fn
        if x.dtype == object:
            return Y.unary(fn, x)
        if fn in ("isinf", "isnan"):
            x = M.widen(x)
        with np.errstate(all="ignore"):
            return M.UNARY[fn](M.widen(x))

    def stages(self, node: Node) -> list[E.Stage] | None:
        x, out, fn = node.inputs[0], node.output, node.attrs.fn
        assert x is not None
        vs = E.iter_vars(out.dims)
        e: E.Expr = E.load(x, vs)
        if fn in ("floor", "ceil", "round", "trunc") and x.dtype.is_int:
            return [E.Stage(out, vs, e)]
        e = E.unary(fn, E.cast(e, M.compute_dtype(x.dtype)))
        return [E.Stage(out, vs, E.cast(e, out.dtype))]


@dataclass(frozen=True)
class BinaryAttrs:
    """``fn``: a name from `expr.BINARY` or `expr.COMPARE`."""

    fn: str = "add"


def _check_binary(fn: str, a: DType, b: DType) -> None:
    if fn not in E.BINARY and fn not in E.COMPARE:
        raise OpError(f"unknown function {fn!r}")
    if a is not b and fn != "pow":
        raise OpError(f"operands of {fn} have types {a} and {b}; cast one to the other's type")
    if fn in _LOGICAL:
        fits, wanted = a is T.b1, "bool"
    elif fn in _BITWISE:
        fits, wanted = a.is_int or (a is T.b1 and fn.startswith("bit")), "integer"
    elif fn == "atan2":
        fits, wanted = a.is_float, "float"
    elif fn in E.COMPARE:
        fits, wanted = a.kind != "c" or fn in ("eq", "ne"), "real"
    else:
        fits, wanted = a is not T.b1, "number"
    if not fits:
        raise OpError(f"{fn} needs {wanted} operands, not {a}; cast them first")


@register
class Binary(Op):
    """``fn(a, b)`` with numpy broadcasting. Integer ``div`` truncates; ``pow`` may mix types and
    gives that of ``a``; comparisons give bool."""

    name = "binary"
    kind = Kind.POINTWISE
    Attrs = BinaryAttrs
    symbolic = True
    symbolic_floats = True

    def infer(self, node: Node) -> Sequence[TensorType]:
        a, b, fn = S.operand(node, 0), S.operand(node, 1), node.attrs.fn
        _check_binary(fn, a.dtype, b.dtype)
        dt = T.b1 if fn in E.COMPARE else a.dtype
        return [TensorType(dt, S.broadcast(a.dims, b.dims, node=node))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        (a, b), fn = inputs, node.attrs.fn
        if a.dtype == object or b.dtype == object:
            return Y.binary(fn, a, b, S.operand(node, 0).dtype.is_float)
        if fn == "pow" and a.dtype != b.dtype:
            dt = _pow_dtype(T.dtype(a.dtype), T.dtype(b.dtype)).np
            with np.errstate(all="ignore"):
                return M.convert(M.power(a.astype(dt), b.astype(dt)), T.dtype(a.dtype))
        with np.errstate(all="ignore"):
            return M.BINARY[fn](M.widen(a), M.widen(b))

    def stages(self, node: Node) -> list[E.Stage] | None:
        a, b, out, fn = S.operand(node, 0), S.operand(node, 1), node.output, node.attrs.fn
        vs = E.iter_vars(out.dims)
        wide = _pow_dtype(a.dtype, b.dtype) if fn == "pow" else M.compute_dtype(a.dtype)
        x, y = (E.cast(S.broadcast_load(v, vs, out.dims), wide) for v in (a, b))
        if fn == "div" and wide.is_int:
            fn = "truncdiv"
        return [E.Stage(out, vs, E.cast(E.binary(fn, x, y), out.dtype))]


def _pow_dtype(a: DType, b: DType) -> DType:
    """The type ``a ** b`` is computed in."""
    if a is b or (a.is_int and b.is_int):
        return M.compute_dtype(a) if a.bits >= b.bits or a is b else T.i64
    if a.is_float and not b.is_float:
        return M.compute_dtype(a)
    if a.is_int:
        return T.f64 if a.bits > 16 or b is T.f64 else T.f32
    return T.f64 if T.f64 in (a, b) else T.f32


@register
class Select(Op):
    """``a`` where ``cond`` holds, else ``b``; all three broadcast."""

    name = "select"
    kind = Kind.POINTWISE
    symbolic = True
    symbolic_floats = True

    def infer(self, node: Node) -> Sequence[TensorType]:
        cond, a, b = (S.operand(node, i) for i in range(3))
        if cond.dtype is not T.b1:
            raise OpError(f"the condition {S.show(cond)} must be bool; cast it first")
        if a.dtype is not b.dtype:
            raise OpError(f"{S.show(a)} and {S.show(b)} must have one type; cast one of them")
        return [TensorType(a.dtype, S.broadcast(cond.dims, a.dims, b.dims, node=node))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        cond, a, b = inputs
        if cond.dtype == object:
            cond = cond.astype(np.bool_)
        return np.where(cond, a, b)

    def stages(self, node: Node) -> list[E.Stage] | None:
        out = node.output
        vs = E.iter_vars(out.dims)
        cond, a, b = (S.broadcast_load(S.operand(node, i), vs, out.dims) for i in range(3))
        return [E.Stage(out, vs, E.select(cond, a, b))]


@dataclass(frozen=True)
class CastAttrs:
    """``to``: the element type. ``saturate``: float8 and float4 results clamp to the largest
    finite value instead of becoming infinite or NaN (ONNX's meaning; other types wrap)."""

    to: DType = T.f32
    saturate: bool = True


@register
class Cast(Op):
    """Conversion of element types, as numpy's ``astype``."""

    name = "cast"
    kind = Kind.POINTWISE
    Attrs = CastAttrs
    symbolic = True
    symbolic_floats = True

    def infer(self, node: Node) -> Sequence[TensorType]:
        return [TensorType(node.attrs.to, S.operand(node, 0).dims)]

    def reference(self, node: Node, *inputs: Any) -> Any:
        (x,), to = inputs, node.attrs.to
        if x.dtype == object:
            return Y.cast(x, to)
        if to is T.f8e8m0:
            return _to_e8m0(x, node.attrs.saturate)
        return M.convert(x, to, node.attrs.saturate and to.is_float and to.bits <= 8)

    def stages(self, node: Node) -> list[E.Stage] | None:
        x, out, a = S.operand(node, 0), node.output, node.attrs
        if "c" in (x.dtype.kind, a.to.kind) or a.to is T.f8e8m0:
            return None
        vs = E.iter_vars(out.dims)
        narrow = a.to.is_float and a.to.bits <= 8
        return [E.Stage(out, vs, E.cast(E.load(x, vs), a.to, a.saturate and narrow))]


def _to_e8m0(x: Any, saturate: bool) -> Any:
    """Powers of two, rounded up (as ONNX's default round mode)."""
    wide = x.astype(np.float64)
    with np.errstate(all="ignore"):
        up = np.exp2(np.ceil(np.log2(wide)))
    if saturate:
        up = np.clip(up, 2.0**-127, 2.0**127)
    else:
        up = np.where((up > 2.0**127) | (up < 2.0**-127), np.nan, up)
    return up.astype(T.f8e8m0.np)


@register
class Identity(Op):
    """``x`` itself."""

    name = "identity"
    kind = Kind.VIEW
    symbolic = True
    symbolic_floats = True

    def infer(self, node: Node) -> Sequence[TensorType]:
        x = S.operand(node, 0)
        return [TensorType(x.dtype, x.dims)]

    def reference(self, node: Node, *inputs: Any) -> Any:
        return inputs[0]


@dataclass(frozen=True)
class AssertionAttrs:
    """``message``: what to tell the user when the condition fails."""

    message: str = ""


@register
class Assertion(Op):
    """Fails, when building or running, unless every element of ``cond`` is true. No outputs."""

    name = "assertion"
    kind = Kind.OPAQUE
    Attrs = AssertionAttrs
    pure = False

    def num_outputs(self, node: Node) -> int:
        return 0

    def infer(self, node: Node) -> Sequence[TensorType]:
        cond = S.operand(node, 0)
        if cond.dtype is not T.b1:
            raise OpError(f"the condition {S.show(cond)} must be bool; cast it first")
        known = S.ints(cond)
        if known is not None and D.is_static(*known) and not all(known):
            raise OpError(f"assertion failed: {node.attrs.message}")
        return []

    def reference(self, node: Node, *inputs: Any) -> Any:
        if not np.all(inputs[0]):
            raise AssertionError(f"{node.describe()}: assertion failed: {node.attrs.message}")
        return ()
