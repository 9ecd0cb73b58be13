"""How the operands of an `attention` node lie in memory.

Queries, keys and values are ``[batch, heads, length, size]``, or ``[batch, length, heads * size]``
with the heads side by side in a row. Rows of the second form may be parts of longer rows (the
merged projection of all three): such an operand is a slice of that value, `region.pitch` apart.
Kernels get the address of the operand's own first element.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ir import dims as D
from ..ir import expr as E
from ..ir.graph import Node, Value
from .region import pitch

PART_ALIGN = 16  # bytes that offsets and distances of parts are multiples of


@dataclass(frozen=True)
class Heads:
    """An operand or the result of attention, seen as ``[batch, heads, length, size]``.

    Attributes:
        batch, heads, length, size: Extents.
        strides: Elements between neighbours along each of them; the last is 1.
    """

    batch: D.DimLike
    heads: D.DimLike
    length: D.DimLike
    size: D.DimLike
    strides: tuple[D.DimLike, D.DimLike, D.DimLike, int]


def heads_of(v: Value, heads: int) -> Heads:
    """Extents and strides of a value with ``heads`` heads (counted only if it is 3-D)."""
    if v.rank == 4:
        b, h, n, d = v.dims
        return Heads(b, h, n, d, (h * n * d, n * d, d, 1))
    b, n, e = v.dims
    size, row = D.floor_div(e, heads), pitch(v)
    return Heads(b, heads, n, size, (n * row, size, row, 1))


def attention_operands(node: Node) -> tuple[Heads, Heads, Heads, Heads]:
    """Queries, keys, values and the result of an `attention` node."""
    a = node.attrs
    q, k, v = node.inputs[:3]
    assert q is not None and k is not None and v is not None
    return (
        heads_of(q, a.q_heads), heads_of(k, a.kv_heads), heads_of(v, a.kv_heads),
        heads_of(node.outputs[0], a.q_heads),
    )


def part_of(stage: E.Stage) -> tuple[Value, int] | None:
    """(source, first element of a row) if a stage cuts out a part of every row of a value."""
    ld, out = stage.expr, stage.out
    if not isinstance(ld, E.Load) or ld.guard is not None or ld.dtype is not out.dtype:
        return None
    source = ld.value
    if source.rank != 3 or out.rank != 3 or source.const is not None:
        return None
    for index, var, d in zip(ld.index[:2], stage.vars, source.dims, strict=False):
        first = var.extent == 1 and isinstance(index, E.Const) and index.value == 0
        if not (index is var or first) or var.extent != d:
            return None
    start = _start(ld.index[2], stage.vars[2])
    if start is None or not D.is_static(source.dims[2], out.dims[2]):
        return None
    apart = (start * out.dtype.size, int(source.dims[2]) * out.dtype.size)  # type: ignore
    return None if any(x % PART_ALIGN for x in apart) else (source, start)


def _start(index: E.Expr, var: E.Var) -> int | None:
    if index is var:
        return 0
    if isinstance(index, E.Binary) and index.fn == "add":
        for a, b in ((index.a, index.b), (index.b, index.a)):
            if a is var and isinstance(b, E.Const):
                return int(b.value)
            if a is var and isinstance(b, E.Size) and D.is_static(b.dim):
                return int(b.dim)  # type: ignore[arg-type]
    return None
