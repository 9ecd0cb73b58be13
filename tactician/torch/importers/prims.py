"""torch's primitives, into which some of its decompositions go: their operands have one type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...ir import dtypes as T
from ...ir.graph import Value
from ..context import Context, Operand
from ..table import aten_op

prims = torch.ops.prims


def _unary(name: str, fn: str) -> None:
    @aten_op(getattr(prims, name).default)
    def unary(c: Context, x: Value) -> Value:
        return c.unary(fn, x)


for _name in ("abs ceil floor trunc round sqrt rsqrt exp log sin cos tan sinh cosh tanh asin acos "
              "atan erf neg sign lgamma").split():
    _unary(_name, _name)
_unary("reciprocal", "recip")


def _binary(name: str, fn: str) -> None:
    @aten_op(getattr(prims, name).default)
    def binary(c: Context, a: Operand, b: Operand) -> Value:
        kind = next(v.dtype for v in (a, b) if isinstance(v, Value))
        return c.binary(fn, c.value(a, kind), c.value(b, kind))


for _name, _fn in {"add": "add", "sub": "sub", "mul": "mul", "maximum": "max", "minimum": "min",
                   "pow": "pow", "atan2": "atan2", "eq": "eq", "ne": "ne", "lt": "lt", "le": "le",
                   "gt": "gt", "ge": "ge"}.items():
    _binary(_name, _fn)


def _bits(name: str, fn: str) -> None:
    @aten_op(getattr(prims, f"bitwise_{name}").default)
    def bits(c: Context, a: Operand, b: Operand) -> Value:
        kind = next(v.dtype for v in (a, b) if isinstance(v, Value))
        return c.binary(name if kind is T.b1 else fn, c.value(a, kind), c.value(b, kind))


for _name, _fn in {"and": "bitand", "or": "bitor", "xor": "bitxor"}.items():
    _bits(_name, _fn)


@aten_op(prims.div.default)
def div(c: Context, a: Operand, b: Operand) -> Value:
    """Whole numbers are divided towards zero."""
    kind = next(v.dtype for v in (a, b) if isinstance(v, Value))
    a, b = c.value(a, kind), c.value(b, kind)
    return c.binary("div" if kind.is_float else "truncdiv", a, b)


@aten_op(prims.where.default)
def where(c: Context, cond: Value, a: Operand, b: Operand) -> Value:
    return c.select(c.flag(cond), c.value(a, c.dtype), c.value(b, c.dtype))


@aten_op(prims.broadcast_in_dim.default)
def broadcast_in_dim(c: Context, x: Value, shape: Sequence[Any], axes: Sequence[int]) -> Value:
    new = [i for i in range(len(shape)) if i not in axes]
    return c.broadcast(c.unsqueeze(x, new) if new else x, c.shape_out)
