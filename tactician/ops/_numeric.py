"""Accumulator types and small array helpers shared by reductions and contractions."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ir.dtypes import DType, dtype, f32, i64, u64
from ..ir.graph import Node, Value
from ._shapes import fmt, operand, optional

Array = np.ndarray[Any, Any]


def accumulator(dt: DType) -> DType:
    """The type that sums of ``dt`` are kept in: f32 for floats narrower than that."""
    return f32 if dt.is_float and dt.bits < 32 else dt


def mean_accumulator(dt: DType) -> DType:
    """As `accumulator`, but integers are summed in 64 bits: the mean fits, the sum may not."""
    return (u64 if dt is u64 else i64) if dt.is_int else accumulator(dt)


def widen(x: Any) -> Any:
    """An array in its accumulator type; object arrays (of symbolic dims) stay as they are."""
    x = np.asarray(x)
    return x if x.dtype == object else x.astype(accumulator(dtype(x.dtype)).np, copy=False)


def lowest(dt: DType) -> Any:
    """The identity of max: -inf, the smallest integer, or False."""
    if dt.is_float:
        return -float("inf")
    return False if dt.kind == "b" else int(np.iinfo(dt.np).min)


def highest(dt: DType) -> Any:
    """The identity of min."""
    if dt.is_float:
        return float("inf")
    return True if dt.kind == "b" else int(np.iinfo(dt.np).max)


def shape_text(v: Value) -> str:
    """``f32[2, n, 8]``, for error messages."""
    return f"{v.dtype}{fmt(v.dims)}"


def operands(node: Node, required: int, count: int = 0) -> tuple[Any, ...]:
    """The first inputs of a node: ``required`` ones, then optional ones up to ``count``, None
    where absent.

    Raises:
        OpError: If a required one is absent.
    """
    found: list[Any] = [operand(node, i) for i in range(required)]
    return (*found, *(optional(node, i) for i in range(required, count)))
