"""Ops on shapes: constant, shape, reshape, squeeze, unsqueeze, expand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..ir import dims as D
from ..ir import dtypes as T
from ..ir import expr as E
from ..ir.graph import Node, Shape, TensorType
from . import _shapes as S
from .registry import Kind, Op, OpError, register


@dataclass(frozen=True, eq=False)
class ConstantAttrs:
    """``value``: the data, of any element type."""

    value: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros(0, np.float32))


@register
class Constant(Op):
    """A constant tensor."""

    name = "constant"
    kind = Kind.INDEX_MAP
    Attrs = ConstantAttrs
    symbolic = True
    symbolic_floats = True

    def infer(self, node: Node) -> Sequence[TensorType]:
        value = np.asarray(node.attrs.value)
        return [TensorType(T.dtype(value.dtype), tuple(value.shape))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        return np.asarray(node.attrs.value)


@register
class ShapeOf(Op):
    """The shape of ``x`` as an i64 vector."""

    name = "shape"
    kind = Kind.INDEX_MAP
    symbolic = True

    def infer(self, node: Node) -> Sequence[TensorType]:
        dims = S.operand(node, 0).dims
        content = np.empty(len(dims), dtype=object)
        content[:] = dims
        return [TensorType(T.i64, (len(dims),), content)]

    def reference(self, node: Node, *inputs: Any) -> Any:
        return np.array(np.shape(inputs[0]), dtype=np.int64)

    def stages(self, node: Node) -> list[E.Stage] | None:
        vs = E.iter_vars(node.output.dims)
        dims = S.operand(node, 0).dims
        e = E.idx(dims[-1] if dims else 0)
        for k in range(len(dims) - 2, -1, -1):
            e = E.select(E.compare("eq", vs[0], E.idx(k)), E.idx(dims[k]), e)
        return [E.Stage(node.output, vs, e)]


@dataclass(frozen=True)
class ReshapeAttrs:
    """``zero_copies``: a 0 in the shape copies the input's dimension (ONNX's default);
    otherwise it means an empty dimension."""

    zero_copies: bool = True


def reshaped(
    dims: Shape, target: Sequence[D.DimLike], zero_copies: bool, node: Node | None = None
) -> Shape:
    """The shape that ``target`` (with -1 and 0) means for a tensor of shape ``dims``.

    Raises:
        OpError: If the number of elements would change.
    """
    out = list(target)
    for i, d in enumerate(out):
        if not isinstance(d, D.Dim) and d == 0 and zero_copies:
            if i >= len(dims):
                raise OpError(f"0 at position {i} of the new shape copies a dimension that "
                              f"{S.fmt(dims)} does not have")
            out[i] = dims[i]
        elif not isinstance(d, D.Dim) and d < -1:
            raise OpError(f"{d} in new shape {S.fmt(target)}; only -1, 0 and sizes are allowed")
    holes = [i for i, d in enumerate(out) if not isinstance(d, D.Dim) and d == -1]
    if len(holes) > 1:
        raise OpError(f"new shape {S.fmt(target)} has more than one -1")
    count = D.product(dims)
    if holes:
        out[holes[0]] = _missing(dims, out[: holes[0]] + out[holes[0] + 1:], target)
    elif D.product(out) != count:
        if D.is_static(count, D.product(out)):
            raise OpError(f"shape {S.fmt(dims)} has {count} elements, new shape {S.fmt(target)} "
                          f"has {D.product(out)}; they must be the same number")
        S.assume(node, "eq", D.product(out), count)
    return tuple(out)


def _missing(dims: Shape, rest: list[D.DimLike], target: Sequence[D.DimLike]) -> D.DimLike:
    count, others = D.product(dims), D.product(rest)
    if not isinstance(others, D.Dim) and others == 0:
        raise OpError(f"-1 in new shape {S.fmt(target)} is ambiguous beside a size of 0")
    # Cancel common factors first: products of sums may not divide as polynomials.
    left = list(dims)
    right = []
    for d in rest:
        if d in left:
            left.remove(d)
        else:
            right.append(d)
    count, others = D.product(left), D.product(right)
    if D.is_static(count, others) and int(count) % int(others):
        raise OpError(f"{S.fmt(dims)} cannot be reshaped to {S.fmt(target)}: "
                      f"{count} is not a multiple of {others}")
    return D.floor_div(count, others)


@register
class Reshape(Op):
    """``x`` with another shape; -1 is inferred, 0 copies (see `ReshapeAttrs`)."""

    name = "reshape"
    kind = Kind.VIEW
    Attrs = ReshapeAttrs
    symbolic = True
    symbolic_floats = True

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, shape = S.operand(node, 0), S.operand(node, 1)
        rank = S.vector_length(shape, "the new shape")
        target = S.ints(shape)
        if target is None:
            return [TensorType(x.dtype, S.data_dims(node, rank))]
        return [TensorType(x.dtype, reshaped(x.dims, target, node.attrs.zero_copies, node))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, shape = inputs
        target = S.to_ints(shape)
        return x.reshape(tuple(int(d) for d in reshaped(x.shape, target, node.attrs.zero_copies)))


@register
class Squeeze(Op):
    """``x`` without the given axes of size 1 (all such axes if none are given)."""

    name = "squeeze"
    kind = Kind.VIEW
    symbolic = True
    symbolic_floats = True

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, axes = S.operand(node, 0), S.optional(node, 1)
        if axes is None:
            if not x.is_static:
                raise OpError(f"squeeze of {S.show(x)} needs axes: which sizes are 1 is not known")
            drop = {i for i, d in enumerate(x.dims) if d == 1}
        else:
            drop = set(S.axes_of(S.static_ints(axes, "axes"), x.rank, "squeezed axis"))
        for i in drop:
            S.unify(x.dims[i], 1, node, f"squeezed axis {i} of {S.show(x)} and 1")
        return [TensorType(x.dtype, tuple(d for i, d in enumerate(x.dims) if i not in drop))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, axes = inputs[0], inputs[1] if len(inputs) > 1 else None
        if axes is None:
            return np.squeeze(x)
        return np.squeeze(x, axis=tuple(S.to_ints(axes)))


@register
class Unsqueeze(Op):
    """``x`` with axes of size 1 inserted; ``axes`` count in the result."""

    name = "unsqueeze"
    kind = Kind.VIEW
    symbolic = True
    symbolic_floats = True

    def infer(self, node: Node) -> Sequence[TensorType]:
        x = S.operand(node, 0)
        axes = S.static_ints(S.operand(node, 1), "axes")
        rank = x.rank + len(axes)
        new = set(S.axes_of(axes, rank, "inserted axis"))
        old = iter(x.dims)
        return [TensorType(x.dtype, tuple(1 if i in new else next(old) for i in range(rank)))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, axes = inputs
        return np.expand_dims(x, tuple(S.to_ints(axes)))


@register
class Expand(Op):
    """``x`` broadcast against a shape, both ways as numpy does."""

    name = "expand"
    kind = Kind.INDEX_MAP
    symbolic = True
    symbolic_floats = True

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, shape = S.operand(node, 0), S.operand(node, 1)
        n = S.vector_length(shape, "the shape")
        target = S.ints(shape)
        if target is None:
            rank = max(x.rank, n)
            out = [S.data_dim(node, i) for i in range(rank)]
            return [TensorType(x.dtype, tuple(out))]
        return [TensorType(x.dtype, S.broadcast(x.dims, target, node=node))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, shape = inputs
        return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(S.to_ints(shape))))

    def stages(self, node: Node) -> list[E.Stage] | None:
        if S.is_data_dependent(node):
            return None
        out = node.output
        vs = E.iter_vars(out.dims)
        return [E.Stage(out, vs, S.broadcast_load(S.operand(node, 0), vs, out.dims))]
