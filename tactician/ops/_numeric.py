"""Accumulator types and small array helpers shared by reductions and contractions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..ir import dims as D
from ..ir import expr as E
from ..ir.dtypes import DType, dtype, f32
from ..ir.expr import Expr
from ..ir.graph import Value
from .registry import OpError

Array = np.ndarray[Any, Any]


def accumulator(dt: DType) -> DType:
    """The type that sums of ``dt`` are kept in: f32 for floats narrower than that."""
    return f32 if dt.is_float and dt.bits < 32 else dt


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
    return f"{v.dtype}[{', '.join(map(str, v.dims))}]"


def broadcast_dims(
    a: Sequence[D.DimLike], b: Sequence[D.DimLike], what: str
) -> tuple[D.DimLike, ...]:
    """numpy broadcasting. A symbolic extent against a number above 1 is taken to be that number.

    Raises:
        OpError: If two extents differ and neither is 1.
    """
    n = max(len(a), len(b))
    out: list[D.DimLike] = []
    for p, q in zip((1,) * (n - len(a)) + tuple(a), (1,) * (n - len(b)) + tuple(b), strict=True):
        if p == q or q == 1:
            out.append(p)
        elif p == 1:
            out.append(q)
        elif D.is_static(p, q):
            raise OpError(f"{what} do not broadcast: {p} against {q}; make them equal or one of "
                          f"them 1")
        else:
            out.append(q if isinstance(p, D.Dim) else p)
    return tuple(out)


def broadcast_index(dims: Sequence[D.DimLike], at: Sequence[Expr]) -> list[Expr]:
    """Index of an operand with extents ``dims``, aligned at the right with position ``at``."""
    tail = at[len(at) - len(dims) :]
    return [E.idx(0) if d == 1 else v for d, v in zip(dims, tail, strict=True)]
