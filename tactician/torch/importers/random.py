"""Random numbers: engines draw their own, whatever torch's seed; `Lowering` says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...ir import dims as D
from ...ir import dtypes as T
from ...ir.dtypes import DType
from ...ir.graph import Value
from ..context import Context, Operand
from ..table import AtenProblem, aten_op

aten = torch.ops.aten
_NOTE = "the engine's own numbers, not torch's"


def drawn(c: Context, fn: str, alpha: Any, beta: Any, shape: Sequence[D.DimLike],
          dt: DType | None = None) -> Value:
    """Numbers of a distribution that `fill` knows, new ones at every run."""
    dt = dt or c.dtype
    wide = dt if dt.is_float else T.f32
    return c.op("fill", c.sizes(shape), c.const(alpha, wide), c.const(beta, wide), fn=fn, to=wide)


@aten_op(aten.rand.default, aten.rand_like.default, note=_NOTE)
def rand(c: Context, *args: Any, **kwargs: Any) -> Value:
    return drawn(c, "random_uniform", 0, 1, c.shape_out)


@aten_op(aten.randn.default, aten.randn_like.default, note=_NOTE)
def randn(c: Context, *args: Any, **kwargs: Any) -> Value:
    return drawn(c, "random_normal", 0, 1, c.shape_out)


@aten_op(torch.ops.prims.normal.default, note=_NOTE)
def normal(c: Context, shape: Any, *, mean: float, std: float, **kwargs: Any) -> Value:
    return drawn(c, "random_normal", mean, std, c.shape_out)


@aten_op(aten.uniform.default, note=_NOTE)
def uniform(c: Context, x: Value, low: float = 0.0, high: float = 1.0, **kwargs: Any) -> Value:
    return drawn(c, "random_uniform", low, high, c.shape_out)


@aten_op(aten.randint.low, aten.randint_like.low_dtype, note=_NOTE)
def randint(c: Context, *args: Any, **kwargs: Any) -> Value:
    first = 1 if isinstance(args[0], Value) else 0
    return _whole(c, args[first], args[first + 1])


@aten_op(aten.randint.default, aten.randint_like.default, note=_NOTE)
def randint_from_0(c: Context, *args: Any, **kwargs: Any) -> Value:
    return _whole(c, 0, args[1 if isinstance(args[0], Value) else 0])


def _whole(c: Context, low: Operand, high: Operand) -> Value:
    """Whole numbers from ``low`` up to but not including ``high``."""
    unit = drawn(c, "random_uniform", 0, 1, c.shape_out, T.f64)
    low, high = c.value(low, T.f64), c.value(high, T.f64)
    return c.cast(c.unary("floor", c.add(c.mul(unit, c.sub(high, low)), low)), c.dtype)


@aten_op(aten.randperm.default, note=_NOTE)
def randperm(c: Context, count: Operand, **kwargs: Any) -> Value:
    """The order of as many random numbers."""
    (size,) = c.shape_out
    keys = drawn(c, "random_uniform", 0, 1, [size], T.f64)
    return c.ops("topk", keys, c.sizes([size]), axis=0, largest=False)[1]


@aten_op(aten.bernoulli.default, note=_NOTE)
def bernoulli(c: Context, chances: Value, **kwargs: Any) -> Value:
    unit = drawn(c, "random_uniform", 0, 1, chances.dims, T.f32)
    return c.cast(c.binary("lt", unit, c.cast(chances, T.f32)), c.dtype)


@aten_op(aten.bernoulli.p, note=_NOTE)
def bernoulli_p(c: Context, x: Value, p: float = 0.5, **kwargs: Any) -> Value:
    unit = drawn(c, "random_uniform", 0, 1, x.dims, T.f32)
    return c.cast(c.binary("lt", unit, c.const(p, T.f32)), c.dtype)


@aten_op(aten.native_dropout.default, note="not while training")
def native_dropout(c: Context, x: Value, p: float, train: bool | None) -> list[Value]:
    if train is not False and p:
        raise AtenProblem("dropout while training; call module.eval() first")
    return [x, c.full(x.dims, True, T.b1)]
