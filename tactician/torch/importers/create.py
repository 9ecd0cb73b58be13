"""Tensors made from sizes and numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ...ir import dims as D
from ...ir import dtypes as T
from ...ir.graph import Value
from ..context import Context
from ..table import aten_op

aten = torch.ops.aten


def _filled(targets: list[Any], number: Any) -> None:
    @aten_op(*targets)
    def filled(c: Context, *args: Any, **kwargs: Any) -> Value:
        return c.full(c.shape_out, number, c.dtype)


_filled([aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default,
         aten.empty.memory_format, aten.empty_permuted.default], 0)
_filled([aten.ones.default, aten.ones_like.default, aten.new_ones.default], 1)


@aten_op(aten.full.default, aten.full_like.default, aten.new_full.default)
def full(c: Context, like: Any, *args: Any, **kwargs: Any) -> Value:
    return c.full(c.shape_out, args[-1], c.dtype)


@aten_op(aten.fill.Scalar, aten.fill.Tensor)
def fill(c: Context, x: Value, number: Any) -> Value:
    return c.full(c.shape_out, number, c.dtype)


@aten_op(aten.scalar_tensor.default)
def scalar_tensor(c: Context, number: Any, **kwargs: Any) -> Value:
    return c.value(number, c.dtype)


@aten_op(aten.arange.default)
def arange(c: Context, end: Any, **kwargs: Any) -> Value:
    return _range(c, 0, end, 1)


@aten_op(aten.arange.start)
def arange_start(c: Context, start: Any, end: Any, **kwargs: Any) -> Value:
    return _range(c, start, end, 1)


@aten_op(aten.arange.start_step)
def arange_step(c: Context, start: Any, end: Any, step: Any = 1, **kwargs: Any) -> Value:
    return _range(c, start, end, step)


def _range(c: Context, start: Any, end: Any, step: Any) -> Value:
    (count,) = c.shape_out
    if D.is_static(start, step, count):
        return c.const((start + np.arange(int(count)) * step).astype(c.dtype.np))
    indices = c.op("range", c.value(0, T.i64), c.value(count, T.i64), c.value(1, T.i64))
    if step != 1:
        indices = c.mul(indices, c.value(step, T.i64))
    if start != 0:
        indices = c.add(indices, c.value(start, T.i64))
    return c.cast(indices, c.dtype)


@aten_op(aten.linspace.default)
def linspace(c: Context, start: float, end: float, steps: int, **kwargs: Any) -> Value:
    return c.const(torch.linspace(start, end, steps, dtype=torch.float64).numpy()
                   .astype(c.dtype.np))


@aten_op(aten.eye.default, aten.eye.m, note="static sizes")
def eye(c: Context, n: int, m: int | None = None, **kwargs: Any) -> Value:
    return c.const(np.eye(n, m, dtype=np.float64).astype(c.dtype.np))


@aten_op(aten.tril.default, aten.triu.default)
def triangle(c: Context, x: Value, diagonal: int = 0) -> Value:
    upper = c.node.target is aten.triu.default
    return c.op("trilu", x, c.const(diagonal, T.i64), upper=upper)
