"""Matrix products: matmul, einsum and integer matmul."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir import dims as D
from ..ir import expr as E
from ..ir.dtypes import DType, i32, i64
from ..ir.expr import Expr, Stage, Var
from ..ir.graph import Graph, Node, TensorType, Value
from . import _shapes as S
from ._einsum import decompose_einsum, parse_equation
from ._numeric import Array, accumulator, operands, shape_text, widen
from .registry import Kind, Op, OpError, register

MATRIX_FLAGS = ("none", "transpose", "vector")


@dataclass(frozen=True)
class MatmulAttrs:
    """
    Attributes:
        ta, tb: What each operand is: ``none`` (matrices in the last two dimensions),
            ``transpose`` (those, transposed), ``vector`` (vectors in the last dimension).
        to: Floating-point element type of the result; None: that of the operands. Sums are kept
            in f32 (f64) anyway, so f8 operands lose nothing with ``to=f32``.
    """

    ta: str = "none"
    tb: str = "none"
    to: DType | None = None


@register
class Matmul(Op):
    """TensorRT's IMatrixMultiplyLayer; ONNX's MatMul. Batch dimensions broadcast as in numpy."""

    name = "matmul"
    kind = Kind.CONTRACTION
    Attrs = MatmulAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        a, b = operands(node, 2)
        if a.dtype is not b.dtype or a.dtype.kind not in "iuf":
            raise OpError(
                f"operands {shape_text(a)} and {shape_text(b)} must have one numeric type: cast one"
            )
        batch_a, rows, inner_a = _matrix(a, node.attrs.ta, "a")
        batch_b, cols, inner_b = _matrix(b, node.attrs.tb, "b", second=True)
        _check_inner(node, inner_a, inner_b)
        batch = S.broadcast(batch_a, batch_b, node=node)
        to = node.attrs.to or a.dtype
        if to is not a.dtype and not (to.is_float and a.dtype.is_float):
            raise OpError(f"the product of {shape_text(a)} can't be {to}: cast it")
        return [TensorType(to, (*batch, *rows, *cols))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        a, b = widen(inputs[0]), widen(inputs[1])
        ta, tb = node.attrs.ta, node.attrs.tb
        a = a[..., None, :] if ta == "vector" else a.swapaxes(-1, -2) if ta == "transpose" else a
        b = b[..., None] if tb == "vector" else b.swapaxes(-1, -2) if tb == "transpose" else b
        y = np.matmul(a, b)
        y = y[..., 0] if tb == "vector" else y
        if ta == "vector":
            y = y[..., 0] if tb == "vector" else y[..., 0, :]
        return y

    def stages(self, node: Node) -> list[Stage] | None:
        return matmul_stages(node)


def _matrix(
    v: Value, flag: str, what: str, second: bool = False
) -> tuple[tuple[D.DimLike, ...], tuple[D.DimLike, ...], D.DimLike]:
    """Batch dimensions, free dimensions (rows of a, columns of b) and the inner dimension."""
    if flag not in MATRIX_FLAGS:
        raise OpError(f"t{what} {flag!r} is not one of {', '.join(MATRIX_FLAGS)}")
    need = 1 if flag == "vector" else 2
    if v.rank < need:
        raise OpError(
            f"{what} {shape_text(v)} has too few dimensions for '{flag}', which needs {need}"
            + ("" if need == 1 else ": unsqueeze it, or use 'vector'")
        )
    if flag == "vector":
        return v.dims[:-1], (), v.dims[-1]
    rows, cols = v.dims[-2:]
    if (flag == "transpose") != second:
        rows, cols = cols, rows
    return v.dims[:-2], (rows,), cols


def _check_inner(node: Node, inner_a: D.DimLike, inner_b: D.DimLike) -> None:
    a, b = operands(node, 2)
    if D.is_static(inner_a, inner_b) and inner_a != inner_b:
        flags = f" ({node.attrs.ta}, {node.attrs.tb})" if node.op == "matmul" else ""
        raise OpError(
            f"a {shape_text(a)} has {inner_a} columns but b {shape_text(b)} has {inner_b} "
            f"rows{flags}: they must be equal; transpose an operand"
        )
    S.unify(inner_a, inner_b, node)


def matmul_stages(node: Node) -> list[Stage]:
    """The product as a naive sum: what a loop code generator can always run."""
    (a, b), out, attrs = operands(node, 2), node.output, node.attrs
    work = accumulator(out.dtype)
    _, rows, inner = _matrix(a, attrs.ta, "a")
    _, cols, _ = _matrix(b, attrs.tb, "b", second=True)
    ov, r = E.iter_vars(out.dims), Var(i64, "r", inner)
    free = list(ov[len(ov) - len(rows) - len(cols) :])
    batch, full = ov[: len(ov) - len(free)], out.dims[: len(ov) - len(free)]

    def operand(v: Value, flag: str, own: list[Expr], second: bool) -> Expr:
        tail: list[Expr] = [r, *own] if second else [*own, r]
        if flag == "transpose":
            tail.reverse()
        lead = v.dims[: v.rank - len(tail)]
        return E.cast(E.load(v, [*S.broadcast_index(lead, batch, full), *tail]), work)

    left = operand(a, attrs.ta, list(free[: len(rows)]), False)
    right = operand(b, attrs.tb, list(free[len(rows) :]), True)
    total = E.reduce_("sum", (r,), E.mul(left, right))
    return [Stage(out, ov, E.cast(total, out.dtype))]


# --- integer matmul -------------------------------------------------------------------------


@dataclass(frozen=True)
class IntMatmulAttrs:
    """
    Attributes:
        ta, tb: ``none`` or ``transpose``; operands of one dimension are vectors.
    """

    ta: str = "none"
    tb: str = "none"


@register
class IntMatmul(Op):
    """``(a - a_zero) @ (b - b_zero)`` in i32: ONNX's MatMulInteger. Zero points are scalars, one
    per row of a, or one per column of b (after transposition)."""

    name = "int_matmul"
    kind = Kind.CONTRACTION
    Attrs = IntMatmulAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        a, b = operands(node, 2)
        if a.dtype.kind not in "iu" or b.dtype.kind not in "iu":
            raise OpError(f"operands must be integers, not {shape_text(a)} and {shape_text(b)}")
        batch_a, rows, inner_a = _matrix(a, _int_flag(a, node.attrs.ta), "a")
        batch_b, cols, inner_b = _matrix(b, _int_flag(b, node.attrs.tb), "b", second=True)
        _check_inner(node, inner_a, inner_b)
        batch = S.broadcast(batch_a, batch_b, node=node)
        return [TensorType(i32, (*batch, *rows, *cols))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        a, b, za, zb = (*inputs, None, None)[:4]
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if node.attrs.ta == "transpose" and a.ndim > 1:
            a = a.swapaxes(-1, -2)
        if node.attrs.tb == "transpose" and b.ndim > 1:
            b = b.swapaxes(-1, -2)
        if za is not None:
            za = np.asarray(za, np.float64)
            a = a - (za[:, None] if za.ndim == 1 and za.size > 1 else za)
        if zb is not None:
            b = b - np.asarray(zb, np.float64)
        return exact_i32(np.matmul(a, b))

    def stages(self, node: Node) -> list[Stage] | None:
        return _int_matmul_stages(node)


def _int_flag(v: Value, flag: str) -> str:
    return "vector" if v.rank == 1 else flag


def exact_i32(y: Array) -> Array:
    """f64 sums of 8-bit products (exact below 2**53) as i32, wrapping as C does."""
    return y.astype(np.int64).astype(np.int32)


def _int_matmul_stages(node: Node) -> list[Stage]:
    a, b, za, zb = operands(node, 2, 4)
    out, attrs = node.output, node.attrs
    _, rows, inner = _matrix(a, _int_flag(a, attrs.ta), "a")
    _, cols, _ = _matrix(b, _int_flag(b, attrs.tb), "b", second=True)
    ov, r = E.iter_vars(out.dims), Var(i64, "r", inner)
    free = list(ov[len(ov) - len(rows) - len(cols) :])
    batch, full = ov[: len(ov) - len(free)], out.dims[: len(ov) - len(free)]
    row, col = free[: len(rows)], free[len(rows) :]

    def operand(v: Value, tail: list[Expr], zero: Value | None, at: Sequence[Expr]) -> Expr:
        lead = v.dims[: v.rank - len(tail)]
        if (attrs.ta if v is a else attrs.tb) == "transpose":
            tail.reverse()
        x = E.cast(E.load(v, [*S.broadcast_index(lead, batch, full), *tail]), i32)
        if zero is None:
            return x
        if zero.rank >= 2:  # per row of a: [..., M, 1]; per column of b: [..., 1, N]
            tail_index = [*row, E.idx(0)] if v is a else [E.idx(0), *col]
            where = [*S.broadcast_index(zero.dims[:-2], batch, full), *tail_index]
            where = [E.idx(0) if d == 1 else w for d, w in zip(zero.dims, where, strict=True)]
        else:
            where = [E.idx(0) if d == 1 or not at else at[0] for d in zero.dims]
        return E.sub(x, E.cast(E.load(zero, where), i32))

    left = operand(a, [*row, r], za, row)
    right = operand(b, [r, *col], zb, col)
    return [Stage(out, ov, E.reduce_("sum", (r,), E.mul(left, right)))]


# --- einsum ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class EinsumAttrs:
    """
    Attributes:
        equation: As numpy's: letters, ``...``, optional ``->``; spaces are ignored.
    """

    equation: str = ""


@register
class Einsum(Op):
    """TensorRT's IEinsumLayer; ONNX's Einsum, with ellipsis, diagonals and broadcasting."""

    name = "einsum"
    kind = Kind.CONTRACTION
    Attrs = EinsumAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        xs = node.present_inputs()
        if not xs or any(x.dtype is not xs[0].dtype for x in xs) or xs[0].dtype.kind not in "iuf":
            raise OpError(
                f"operands {', '.join(map(shape_text, xs))} must have one numeric type: cast them"
            )
        terms, result = parse_equation(node.attrs.equation, [x.rank for x in xs])
        sizes = _label_sizes(node, terms, xs)
        return [TensorType(xs[0].dtype, tuple(sizes[c] for c in result))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        xs = [widen(i) for i in inputs]
        terms, result = parse_equation(node.attrs.equation, [x.ndim for x in xs])
        sizes: dict[str, int] = {}
        for term, x in zip(terms, xs, strict=True):
            for c, d in zip(term, x.shape, strict=True):
                sizes[c] = d if sizes.get(c, 1) == 1 else sizes[c]
        operands: list[Any] = []
        numbers = {c: i for i, c in enumerate(dict.fromkeys("".join(terms)))}
        for term, x in zip(terms, xs, strict=True):
            operands += [np.broadcast_to(x, tuple(sizes[c] for c in term)),
                         [numbers[c] for c in term]]
        return np.einsum(*operands, [numbers[c] for c in result], optimize=len(xs) > 1)

    def stages(self, node: Node) -> list[Stage] | None:
        return einsum_stages(node)

    def decompose(self, node: Node, graph: Graph) -> list[Value] | None:
        return decompose_einsum(node, graph)


def _label_sizes(node: Node, terms: Sequence[str], xs: Sequence[Value]) -> dict[str, D.DimLike]:
    sizes: dict[str, D.DimLike] = {}
    for term, x in zip(terms, xs, strict=True):
        for c, d in zip(term, x.dims, strict=True):
            try:
                sizes[c] = S.broadcast_dim(sizes.get(c, 1), d, node)
            except OpError:
                raise OpError(
                    f"label {c!r} has sizes {sizes[c]} and {d} in operands "
                    f"{', '.join(map(shape_text, xs))}: make them equal or one of them 1"
                ) from None
    return sizes


def einsum_stages(node: Node) -> list[Stage]:
    xs, out = node.present_inputs(), node.output
    terms, result = parse_equation(node.attrs.equation, [x.rank for x in xs])
    sizes = _label_sizes(node, terms, xs)
    work = accumulator(out.dtype)
    ov = E.iter_vars(out.dims)
    at: dict[str, Var] = dict(zip(result, ov, strict=True))
    over = [Var(i64, f"r{i}", sizes[c]) for i, c in enumerate(sizes) if c not in result]
    at.update(zip((c for c in sizes if c not in result), over, strict=True))
    y: Expr | None = None
    for term, x in zip(terms, xs, strict=True):
        full = [sizes[c] for c in term]
        index = S.broadcast_index(x.dims, [at[c] for c in term], full)
        v = E.cast(E.load(x, index), work)
        y = v if y is None else E.mul(y, v)
    assert y is not None
    if over:
        y = E.reduce_("sum", over, y)
    return [Stage(out, ov, E.cast(y, out.dtype))]
