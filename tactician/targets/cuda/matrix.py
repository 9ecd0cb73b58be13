"""Matrix products in the form the kernels take: rows, columns, an inner extent and a batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...ir import dims as D
from ...ir.dims import DimLike
from ...ir.dtypes import DType
from ...ir.graph import Node, Value

ROW_ALIGN = 16  # bytes that rows of packed constants are padded to


@dataclass(frozen=True)
class Matrix:
    """One operand: its batch dimensions and the strides of a matrix.

    Attributes:
        value: The value, or its packed form.
        dtype: Element type.
        batch: Its own batch dimensions.
        free, inner: Extents of the dimension that the result keeps and of the one summed over.
        stride, k_stride: Elements between neighbours along them.
        size: Elements of one matrix, gaps included.
    """

    value: Value | np.ndarray[Any, Any]
    dtype: DType
    batch: tuple[DimLike, ...]
    free: DimLike
    inner: DimLike
    stride: DimLike
    k_stride: DimLike
    size: DimLike

    @property
    def elements(self) -> DimLike:
        """Elements of all matrices."""
        return D.product(self.batch) * self.size


@dataclass(frozen=True)
class Problem:
    """A product ``a @ b``.

    Attributes:
        batch: Batch dimensions left after those of ``a`` became rows where that was possible.
        m, n, k: Extents.
        a, b: Operands.
        rows, cols: Dimensions of the result (after ``batch``) that rows and columns run along;
            none where an operand is a vector.
    """

    batch: tuple[DimLike, ...]
    m: DimLike
    n: DimLike
    k: DimLike
    a: Matrix
    b: Matrix
    rows: tuple[DimLike, ...]
    cols: tuple[DimLike, ...]


def _operand(v: Value, flag: str, second: bool) -> Matrix:
    if flag == "vector":
        return Matrix(v, v.dtype, v.dims[:-1], 1, v.dims[-1], v.dims[-1], 1, v.dims[-1])
    rows, cols = v.dims[-2:]
    size = rows * cols
    if (flag == "transpose") != second:  # memory is [k, free]
        return Matrix(v, v.dtype, v.dims[:-2], cols, rows, 1, cols, size)
    return Matrix(v, v.dtype, v.dims[:-2], rows, cols, cols, 1, size)


def flags(node: Node) -> tuple[str, str]:
    """What the operands of a `matmul` or `int_matmul` are; see `ops.contraction`."""
    a, b = node.inputs[:2]
    assert a is not None and b is not None
    if node.op == "int_matmul":
        return (
            "vector" if a.rank == 1 else node.attrs.ta,
            "vector" if b.rank == 1 else node.attrs.tb,
        )
    return node.attrs.ta, node.attrs.tb


def problem(node: Node) -> Problem:
    """The problem of a `matmul` or `int_matmul` node."""
    va, vb = node.inputs[:2]
    assert va is not None and vb is not None
    ta, tb = flags(node)
    a, b = _operand(va, ta, False), _operand(vb, tb, True)
    out = node.outputs[0]
    rows: tuple[DimLike, ...] = (a.free,) if ta != "vector" else ()
    cols: tuple[DimLike, ...] = (b.free,) if tb != "vector" else ()
    batch = out.dims[: out.rank - len(rows) - len(cols)]
    if all(d == 1 for d in b.batch):
        b = replace(b, batch=())
        if ta != "transpose" and a.batch == batch:  # rows of all batches lie behind each other
            m = D.product(batch) * a.free
            a = replace(a, free=m, stride=a.inner, batch=(), size=m * a.inner)
            rows, batch = (*batch, *rows), ()
    if a.free == 1 and len(rows) <= 1 and not batch:
        a = replace(a, stride=a.inner, k_stride=1)  # a single row, however it was meant
    if b.free == 1 and not b.batch:
        b = replace(b, stride=b.inner, k_stride=1)
    return Problem(batch, a.free, b.free, a.inner, a, b, rows, cols)


def turned(p: Problem) -> Problem:
    """The same product with rows and columns exchanged."""
    return replace(p, m=p.n, n=p.m, a=p.b, b=p.a, rows=p.cols, cols=p.rows)


def packed(x: Matrix) -> Matrix:
    """A constant operand with its inner dimension contiguous and rows padded to 16 bytes."""
    if not isinstance(x.value, Value) or x.value.const is None:
        return x
    free, inner = int(x.free), int(x.inner)  # type: ignore[arg-type]
    unit = max(1, ROW_ALIGN // x.dtype.size)
    row = -(-inner // unit) * unit
    if x.k_stride == 1 and row == inner:
        return x
    data = np.asarray(x.value.const)
    count = data.size // (free * inner)
    if x.k_stride == 1:
        data = data.reshape(count, free, inner)
    else:
        data = data.reshape(count, inner, free).swapaxes(1, 2)
    array = np.zeros((count, free, row), x.dtype.np)
    array[:, :, :inner] = data
    return replace(x, value=array, stride=row, k_stride=1, size=free * row)


def broadcast_offset(
    coordinates: list[str], batch: tuple[DimLike, ...], x: Matrix, size_text: Any
) -> str:
    """Text of an operand's first element for the batch at ``coordinates``, or "" if it is 0."""
    lead = len(batch) - len(x.batch)
    terms = []
    stride: DimLike = x.size
    for i in range(len(x.batch) - 1, -1, -1):
        d = x.batch[i]
        if not (not isinstance(d, D.Dim) and d == 1) and coordinates[lead + i] != "0":
            terms.append(f"{coordinates[lead + i]} * {size_text(stride)}")
        stride = stride * d
    return " + ".join(terms[::-1])


def broadcast_unknown(p: Problem) -> bool:
    """Whether a batch size known only at run time may be broadcast."""
    for x in (p.a, p.b):
        full = p.batch[len(p.batch) - len(x.batch) :]
        if any(isinstance(d, D.Dim) and d != f for d, f in zip(x.batch, full, strict=True)):
            return True
    return False
