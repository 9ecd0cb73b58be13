"""Ops whose result depends on a search: non-zero, compress, unique, top-k, NMS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir import dims as D
from ..ir import dtypes as T
from ..ir.graph import Node, TensorType
from . import _math as M
from . import _shapes as S
from .registry import Kind, Op, OpError, register


@register
class NonZero(Op):
    """Indices of the elements that are not 0, row-major, as i64 ``[rank, n]``."""

    name = "non_zero"
    kind = Kind.OPAQUE

    def infer(self, node: Node) -> Sequence[TensorType]:
        x = S.operand(node, 0)
        return [TensorType(T.i64, (x.rank, S.data_dim(node, 0, upper=x.numel)))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        (x,) = inputs
        if x.ndim == 0:
            return np.zeros((0, int(bool(x != 0))), np.int64)
        return np.array(np.nonzero(x != 0), dtype=np.int64).reshape(x.ndim, -1)


@dataclass(frozen=True)
class CompressAttrs:
    """``axis``: what is selected along; None: the flattened input."""

    axis: int | None = None


@register
class Compress(Op):
    """Slices of ``x`` along an axis where ``cond`` (bool vector, maybe shorter) is true."""

    name = "compress"
    kind = Kind.OPAQUE
    Attrs = CompressAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, cond, axis = S.operand(node, 0), S.operand(node, 1), node.attrs.axis
        if cond.dtype is not T.b1 or cond.rank != 1:
            raise OpError(f"the condition {S.show(cond)} must be a bool vector")
        n: D.DimLike
        if cond.const is not None:
            n = int(np.count_nonzero(cond.const))
        else:
            n = S.data_dim(node, 0, upper=cond.dims[0])
        if axis is None:
            return [TensorType(x.dtype, (n,))]
        axis = S.axis_of(axis, x.rank)
        return [TensorType(x.dtype, (*x.dims[:axis], n, *x.dims[axis + 1:]))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, cond = inputs
        axis = node.attrs.axis
        return np.compress(cond, x.reshape(-1) if axis is None else x,
                           axis=0 if axis is None else axis)


@dataclass(frozen=True)
class UniqueAttrs:
    """``axis``: what is compared along; None: elements of the flattened input. ``sorted``:
    ascending order, else that of first occurrence."""

    axis: int | None = None
    sorted: bool = True


@register
class Unique(Op):
    """Distinct elements (or slices), index of the first of each, inverse, counts."""

    name = "unique"
    kind = Kind.OPAQUE
    Attrs = UniqueAttrs

    def num_outputs(self, node: Node) -> int:
        return 4

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, axis = S.operand(node, 0), node.attrs.axis
        if axis is None:
            length, upper = x.numel, x.numel
            n = S.data_dim(node, 0, upper)
            shape: tuple[D.DimLike, ...] = (n,)
        else:
            axis = S.axis_of(axis, x.rank)
            length = x.dims[axis]
            n = S.data_dim(node, 0, length)
            shape = (*x.dims[:axis], n, *x.dims[axis + 1:])
        return [
            TensorType(x.dtype, shape), TensorType(T.i64, (n,)),
            TensorType(T.i64, (length,)), TensorType(T.i64, (n,)),
        ]

    def reference(self, node: Node, *inputs: Any) -> Any:
        (x,), axis = inputs, node.attrs.axis
        work = M.widen(x)
        values, first, inverse, counts = np.unique(
            work.reshape(-1) if axis is None else work, True, True, True,
            axis=0 if axis is None else axis, equal_nan=False,
        )
        inverse = inverse.reshape(-1)
        if not node.attrs.sorted:
            order = np.argsort(first, kind="stable")
            rank = np.empty_like(order)
            rank[order] = np.arange(len(order))
            values = np.take(values, order, axis=0 if axis is None else axis)
            first, counts, inverse = first[order], counts[order], rank[inverse]
        return (values.astype(x.dtype), first.astype(np.int64), inverse.astype(np.int64),
                counts.astype(np.int64))


@dataclass(frozen=True)
class TopKAttrs:
    """``axis``; ``largest``: the greatest elements, else the least; ``sorted``: in that order
    (results are always in order)."""

    axis: int = -1
    largest: bool = True
    sorted: bool = True


@register
class TopK(Op):
    """The ``k`` greatest or least elements along an axis, and their i64 indices. Equal elements
    come in order of index; NaN counts as the greatest number."""

    name = "topk"
    kind = Kind.OPAQUE
    Attrs = TopKAttrs

    def num_outputs(self, node: Node) -> int:
        return 2

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, k = S.operand(node, 0), S.operand(node, 1)
        if S.vector_length(k, "k") != 1:
            raise OpError(f"k {S.show(k)} must be one number")
        axis = S.axis_of(node.attrs.axis, x.rank)
        n = S.scalar_int(k)
        if n is None:
            n = S.data_dim(node, 0, upper=x.dims[axis])
        elif D.is_static(n, x.dims[axis]) and not 0 <= int(n) <= int(x.dims[axis]):
            raise OpError(f"k = {n} of {x.dims[axis]} elements along axis {axis} of {S.show(x)}")
        elif not S.at_least(x.dims[axis], n):
            S.assume(node, "le", n, x.dims[axis])
        shape = (*x.dims[:axis], n, *x.dims[axis + 1:])
        return [TensorType(x.dtype, shape), TensorType(T.i64, shape)]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, k = inputs[0], S.to_ints(inputs[1])[0]
        axis = node.attrs.axis % x.ndim
        if node.attrs.largest:
            # A stable sort of the reversed axis, read backwards: ties keep the lowest index.
            back = np.argsort(np.flip(M.widen(x), axis), axis=axis, kind="stable")
            order = x.shape[axis] - 1 - np.flip(back, axis)
        else:
            order = np.argsort(M.widen(x), axis=axis, kind="stable")
        order = np.take(order, np.arange(k), axis=axis)
        return np.take_along_axis(x, order, axis=axis), order.astype(np.int64)


@dataclass(frozen=True)
class NmsAttrs:
    """``center_box``: boxes are centre and size, else two corners."""

    center_box: bool = False


@register
class Nms(Op):
    """Non-maximum suppression as ONNX has it.

    Inputs ``boxes [N, S, 4], scores [N, C, S], max_out?, iou?, score?``; the result is i64
    ``[n, 3]`` of batch, class, box. ``max_out`` of 0 or absent selects nothing; boxes with equal
    scores come in order of index; ``score``, if given, must be exceeded.
    """

    name = "nms"
    kind = Kind.OPAQUE
    Attrs = NmsAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        boxes, scores = S.operand(node, 0), S.operand(node, 1)
        if boxes.rank != 3 or scores.rank != 3:
            raise OpError(f"boxes {S.show(boxes)} must be [N, S, 4] and scores {S.show(scores)} "
                          "[N, C, S]")
        S.unify(boxes.dims[2], 4, node, f"numbers per box of {S.show(boxes)} and 4")
        S.unify(boxes.dims[0], scores.dims[0], node, "batch sizes of boxes and scores")
        S.unify(boxes.dims[1], scores.dims[2], node, "numbers of boxes and scores")
        each = S.scalar_int(S.optional(node, 2))
        most = boxes.dims[1]
        if each is not None:
            most = D.dim_min(most, D.dim_max(each, 0))
        upper = scores.dims[0] * scores.dims[1] * most
        return [TensorType(T.i64, (S.data_dim(node, 0, upper), 3))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        boxes, scores = M.widen(inputs[0]), M.widen(inputs[1])
        limits = [None if v is None else np.asarray(v).reshape(-1)
                  for v in (*inputs[2:], None, None, None)[:3]]
        most, iou, least = (None if v is None or not v.size else v[0] for v in limits)
        corners = _corners(boxes, node.attrs.center_box)
        found = [
            (b, c, i)
            for b in range(scores.shape[0])
            for c in range(scores.shape[1])
            for i in suppress(corners[b], scores[b, c], int(most or 0), float(iou or 0),
                              None if least is None else float(least))
        ]
        return np.array(found, dtype=np.int64).reshape(-1, 3)


def _corners(boxes: Any, center: bool) -> Any:
    """Boxes as low and high corners."""
    if center:
        half = boxes[..., 2:] / 2
        return np.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], axis=-1)
    low = np.minimum(boxes[..., :2], boxes[..., 2:])
    return np.concatenate([low, np.maximum(boxes[..., :2], boxes[..., 2:])], axis=-1)


def suppress(boxes: Any, scores: Any, most: int, iou: float, least: float | None) -> list[int]:
    """Indices of the boxes kept, best first; each overlaps those before by at most ``iou``."""
    order = np.argsort(-scores, kind="stable")
    if least is not None:
        order = order[scores[order] > least]
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    kept: list[int] = []
    while len(order) and len(kept) < most:
        i, order = order[0], order[1:]
        kept.append(int(i))
        low = np.maximum(boxes[i, :2], boxes[order, :2])
        high = np.minimum(boxes[i, 2:], boxes[order, 2:])
        both = np.prod(np.maximum(high - low, 0), axis=1)
        union = area[i] + area[order] - both
        overlap = np.divide(both, union, out=np.zeros_like(both), where=union > 0)
        order = order[overlap <= iou]
    return kept
