"""Ops that move elements: transpose, concat, pad, tile, space and depth, reverse, triangles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir import dims as D
from ..ir import expr as E
from ..ir.dtypes import i64
from ..ir.graph import Node, TensorType
from . import _shapes as S
from .registry import Kind, Op, OpError, register
from .slicing import mapped_index, mapped_indices


@dataclass(frozen=True)
class TransposeAttrs:
    """``perm``: the input axis of each output axis; empty reverses all."""

    perm: tuple[int, ...] = ()


def permutation(perm: Sequence[int], rank: int) -> tuple[int, ...]:
    """``perm`` with negative axes resolved, reversed axes if it is empty.

    Raises:
        OpError: If it is no permutation of the axes.
    """
    if not perm:
        return tuple(reversed(range(rank)))
    out = S.axes_of(perm, rank, "permuted axis")
    if len(out) != rank:
        raise OpError(f"permutation {list(perm)} does not fit rank {rank}")
    return out


@register
class Transpose(Op):
    """``x`` with its axes in another order."""

    name = "transpose"
    kind = Kind.INDEX_MAP
    Attrs = TransposeAttrs
    symbolic = True

    def infer(self, node: Node) -> Sequence[TensorType]:
        x = S.operand(node, 0)
        return [TensorType(x.dtype, tuple(x.dims[p] for p in permutation(node.attrs.perm, x.rank)))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        return np.transpose(inputs[0], permutation(node.attrs.perm, inputs[0].ndim))

    def stages(self, node: Node) -> list[E.Stage] | None:
        x = S.operand(node, 0)
        vs = E.iter_vars(node.output.dims)
        index: list[E.Expr] = list(vs)
        for out_axis, in_axis in enumerate(permutation(node.attrs.perm, x.rank)):
            index[in_axis] = vs[out_axis]
        return [E.Stage(node.output, vs, E.load(x, index))]


@dataclass(frozen=True)
class ConcatAttrs:
    """``axis``: along which the inputs follow each other."""

    axis: int = 0


@register
class Concat(Op):
    """Inputs one after another along an axis. ``Stage.meta["concat"]`` lists each input with its
    offset, so that code generators can copy piece by piece."""

    name = "concat"
    kind = Kind.INDEX_MAP
    Attrs = ConcatAttrs
    symbolic = True
    symbolic_floats = True

    def infer(self, node: Node) -> Sequence[TensorType]:
        xs = [S.operand(node, i) for i in range(len(node.inputs))]
        if not xs:
            raise OpError("concat needs at least one input")
        first = xs[0]
        if first.rank == 0:
            raise OpError(f"{S.show(first)} has no axis to concatenate along; unsqueeze it first")
        axis = S.axis_of(node.attrs.axis, first.rank)
        out = list(first.dims)
        for x in xs[1:]:
            if x.dtype is not first.dtype or x.rank != first.rank:
                raise OpError(f"{S.show(first)} and {S.show(x)} must have one type and rank")
            for k in range(first.rank):
                if k == axis:
                    out[k] = out[k] + x.dims[k]
                else:
                    what = f"sizes of axis {k} of {S.show(first)} and {S.show(x)}"
                    out[k] = S.unify(out[k], x.dims[k], node, what)
        return [TensorType(first.dtype, tuple(out))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        return np.concatenate(inputs, axis=node.attrs.axis)

    def stages(self, node: Node) -> list[E.Stage] | None:
        out = node.output
        axis = S.axis_of(node.attrs.axis, out.rank)
        vs = E.iter_vars(out.dims)
        offset: D.DimLike = 0
        pieces = []
        for x in node.present_inputs():
            pieces.append((x, offset))
            offset = offset + x.dims[axis]
        # Guards, not only selects: an unselected load would be out of bounds.
        e: E.Expr | None = None
        for x, begin in reversed(pieces):
            at = E.sub(vs[axis], E.idx(begin))
            index = [at if k == axis else v for k, v in enumerate(vs)]
            if len(pieces) == 1:
                e = E.load(x, index)
                break
            low = E.compare("ge", vs[axis], E.idx(begin))
            high = E.compare("lt", vs[axis], E.idx(begin + x.dims[axis]))
            piece = E.load(x, index, E.logical_and(low, high), E.const(0, x.dtype))
            e = piece if e is None else E.select(high, piece, e)
        assert e is not None
        return [E.Stage(out, vs, e, {"concat": pieces, "axis": axis})]


@dataclass(frozen=True)
class PadAttrs:
    """``mode``: constant, edge, reflect (without repeating the edge) or wrap."""

    mode: str = "constant"


PAD_MODES = ("constant", "edge", "reflect", "wrap")


@register
class Pad(Op):
    """``x`` with elements added around; ``pads`` are all befores, then all afters. Negative pads
    crop. Inputs ``x, pads, value?``."""

    name = "pad"
    kind = Kind.INDEX_MAP
    Attrs = PadAttrs
    symbolic = True

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, pads = S.operand(node, 0), S.operand(node, 1)
        if node.attrs.mode not in PAD_MODES:
            raise OpError(f"unknown padding mode {node.attrs.mode!r}; use one of {PAD_MODES}")
        if S.vector_length(pads, "pads") != 2 * x.rank:
            raise OpError(f"pads {S.show(pads)} need {2 * x.rank} elements for {S.show(x)}: all "
                          "befores, then all afters")
        value = S.optional(node, 2)
        if value is not None and value.dtype is not x.dtype:
            raise OpError(f"fill value {S.show(value)} must have the type of {S.show(x)}")
        known = S.ints(pads)
        if known is None:
            return [TensorType(x.dtype, S.data_dims(node, x.rank))]
        out = []
        for k, d in enumerate(x.dims):
            n = d + known[k] + known[x.rank + k]
            if not isinstance(n, D.Dim) and n < 0:
                raise OpError(f"pads {known[k]} and {known[x.rank + k]} crop axis {k} of "
                              f"{S.show(x)} to less than nothing")
            out.append(n)
        return [TensorType(x.dtype, tuple(out))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, pads, mode = inputs[0], S.to_ints(inputs[1]), node.attrs.mode
        value = inputs[2] if len(inputs) > 2 else None
        n = x.ndim
        if mode == "constant":
            fill: Any = 0 if value is None else np.asarray(value).reshape(())[()]
            x = x[tuple(slice(max(-b, 0), max(d - max(-e, 0), 0))
                        for b, e, d in zip(pads[:n], pads[n:], x.shape, strict=True))]
            widths = [(max(b, 0), max(e, 0)) for b, e in zip(pads[:n], pads[n:], strict=True)]
            out = np.full([d + b + e for d, (b, e) in zip(x.shape, widths, strict=True)],
                          fill, dtype=x.dtype)
            out[tuple(slice(b, b + d) for d, (b, _) in zip(x.shape, widths, strict=True))] = x
            return out
        for axis in range(n):
            at = np.arange(-pads[axis], x.shape[axis] + pads[n + axis])
            x = np.take(x, mapped_indices(at, x.shape[axis], mode), axis=axis)
        return x

    def stages(self, node: Node) -> list[E.Stage] | None:
        if S.is_data_dependent(node):
            return None
        x, pads, out, mode = S.operand(node, 0), S.operand(node, 1), node.output, node.attrs.mode
        known = S.ints(pads)
        vs = E.iter_vars(out.dims)
        index: list[E.Expr] = []
        inside: list[E.Expr] = []
        for k, v in enumerate(vs):
            at = E.sub(v, S.element(pads, k))
            untouched = known is not None and known[k] == 0 and known[x.rank + k] == 0
            if mode != "constant" and not untouched:
                at = mapped_index(at, x.dims[k], mode)
            elif not untouched:
                inside += [E.compare("ge", at, E.idx(0)), E.compare("lt", at, E.idx(x.dims[k]))]
            index.append(at)
        if not inside:
            return [E.Stage(out, vs, E.load(x, index))]
        value = S.optional(node, 2)
        other: E.Expr = E.const(0, x.dtype)
        if value is not None:
            other = E.load(value, [E.idx(0)] * value.rank)
            if value.const is not None:
                other = E.const(value.const.reshape(())[()], x.dtype)
        return [E.Stage(out, vs, E.load(x, index, E.logical_and(*inside), other))]


@register
class Tile(Op):
    """``x`` repeated ``reps`` times along each axis."""

    name = "tile"
    kind = Kind.INDEX_MAP
    symbolic = True

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, reps = S.operand(node, 0), S.operand(node, 1)
        if S.vector_length(reps, "repeats") != x.rank:
            raise OpError(f"repeats {S.show(reps)} need one element for each axis of {S.show(x)}")
        known = S.ints(reps)
        if known is None:
            return [TensorType(x.dtype, S.data_dims(node, x.rank))]
        return [TensorType(x.dtype, tuple(d * r for d, r in zip(x.dims, known, strict=True)))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        return np.tile(inputs[0], S.to_ints(inputs[1]))

    def stages(self, node: Node) -> list[E.Stage] | None:
        if S.is_data_dependent(node):
            return None
        x, out = S.operand(node, 0), node.output
        vs = E.iter_vars(out.dims)
        index = [
            v if d == n else E.idx(0) if d == 1 else E.binary("mod", v, E.idx(d))
            for v, d, n in zip(vs, x.dims, out.dims, strict=True)
        ]
        return [E.Stage(out, vs, E.load(x, index))]


@dataclass(frozen=True)
class DepthToSpaceAttrs:
    """``block``: side of the square; ``mode``: ``dcr`` (depth, column, row) or ``crd``."""

    block: int = 2
    mode: str = "dcr"


def _image(node: Node, block: int) -> None:
    x = S.operand(node, 0)
    if x.rank != 4 or block < 1:
        raise OpError(f"{node.op} needs [N, C, H, W] and a positive block, not {S.show(x)} and "
                      f"{block}")


@register
class DepthToSpace(Op):
    """[N, C*b*b, H, W] to [N, C, H*b, W*b]."""

    name = "depth_to_space"
    kind = Kind.INDEX_MAP
    Attrs = DepthToSpaceAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        b = node.attrs.block
        _image(node, b)
        x = S.operand(node, 0)
        n, c, h, w = x.dims
        if node.attrs.mode not in ("dcr", "crd"):
            raise OpError(f"unknown mode {node.attrs.mode!r}; use 'dcr' or 'crd'")
        if D.is_static(c) and int(c) % (b * b):
            raise OpError(f"{c} channels of {S.show(x)} are not a multiple of {b * b}")
        return [TensorType(x.dtype, (n, D.floor_div(c, b * b), h * b, w * b))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        (x,), b = inputs, node.attrs.block
        n, c, h, w = x.shape
        c //= b * b
        if node.attrs.mode == "dcr":
            y = x.reshape(n, b, b, c, h, w).transpose(0, 3, 4, 1, 5, 2)
        else:
            y = x.reshape(n, c, b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
        return y.reshape(n, c, h * b, w * b)

    def stages(self, node: Node) -> list[E.Stage] | None:
        b, out = node.attrs.block, node.output
        n, c, y, x = vs = E.iter_vars(out.dims)
        block = E.idx(b)
        row, col = E.binary("mod", y, block), E.binary("mod", x, block)
        cell = E.add(E.mul(row, block), col)
        if node.attrs.mode == "dcr":
            channel = E.add(E.mul(cell, E.idx(out.dims[1])), c)
        else:
            channel = E.add(E.mul(c, E.idx(b * b)), cell)
        at = [n, channel, E.binary("floordiv", y, block), E.binary("floordiv", x, block)]
        return [E.Stage(out, vs, E.load(S.operand(node, 0), at))]


@dataclass(frozen=True)
class SpaceToDepthAttrs:
    """``block``: side of the square."""

    block: int = 2


@register
class SpaceToDepth(Op):
    """[N, C, H*b, W*b] to [N, b*b*C, H, W]."""

    name = "space_to_depth"
    kind = Kind.INDEX_MAP
    Attrs = SpaceToDepthAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        b = node.attrs.block
        _image(node, b)
        x = S.operand(node, 0)
        n, c, h, w = x.dims
        if any(D.is_static(d) and int(d) % b for d in (h, w)):
            raise OpError(f"height and width of {S.show(x)} are not multiples of {b}")
        return [TensorType(x.dtype, (n, c * b * b, D.floor_div(h, b), D.floor_div(w, b)))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        (x,), b = inputs, node.attrs.block
        n, c, h, w = x.shape
        y = x.reshape(n, c, h // b, b, w // b, b).transpose(0, 3, 5, 1, 2, 4)
        return y.reshape(n, c * b * b, h // b, w // b)

    def stages(self, node: Node) -> list[E.Stage] | None:
        b, out, src = node.attrs.block, node.output, S.operand(node, 0)
        n, c, y, x = vs = E.iter_vars(out.dims)
        channels, block = E.idx(src.dims[1]), E.idx(b)
        cell = E.binary("floordiv", c, channels)
        row, col = E.binary("floordiv", cell, block), E.binary("mod", cell, block)
        at = [n, E.binary("mod", c, channels), E.add(E.mul(y, block), row),
              E.add(E.mul(x, block), col)]
        return [E.Stage(out, vs, E.load(src, at))]


@dataclass(frozen=True)
class ReverseSequenceAttrs:
    """``batch_axis``: one length for each of its elements; ``seq_axis``: what is reversed."""

    batch_axis: int = 1
    seq_axis: int = 0


@register
class ReverseSequence(Op):
    """Reverses the first ``lens[b]`` elements along the sequence axis, for each batch element."""

    name = "reverse_sequence"
    kind = Kind.INDEX_MAP
    Attrs = ReverseSequenceAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, lens, a = S.operand(node, 0), S.operand(node, 1), node.attrs
        batch = S.axis_of(a.batch_axis, x.rank, "batch axis")
        if S.axis_of(a.seq_axis, x.rank, "sequence axis") == batch:
            raise OpError(f"batch and sequence axis are both {batch}")
        if lens.rank != 1 or not lens.dtype.is_int:
            raise OpError(f"lengths {S.show(lens)} must be an integer vector")
        S.unify(lens.dims[0], x.dims[batch], node, "number of lengths and batch size")
        return [TensorType(x.dtype, x.dims)]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, lens = inputs
        y = np.moveaxis(x, (node.attrs.batch_axis, node.attrs.seq_axis), (0, 1))
        out = y.copy()
        for b, n in enumerate(S.to_ints(lens)):
            out[b, :n] = y[b, :n][::-1]
        return np.moveaxis(out, (0, 1), (node.attrs.batch_axis, node.attrs.seq_axis))

    def stages(self, node: Node) -> list[E.Stage] | None:
        x, lens, out = S.operand(node, 0), S.operand(node, 1), node.output
        vs = E.iter_vars(out.dims)
        batch, seq = node.attrs.batch_axis % x.rank, node.attrs.seq_axis % x.rank
        n = E.cast(E.load(lens, [vs[batch]]), i64)
        mirrored = E.sub(E.sub(n, E.idx(1)), vs[seq])
        index: list[E.Expr] = list(vs)
        index[seq] = E.select(E.compare("lt", vs[seq], n), mirrored, vs[seq])
        return [E.Stage(out, vs, E.load(x, index))]


@dataclass(frozen=True)
class TriluAttrs:
    """``upper``: keep the upper triangle, else the lower."""

    upper: bool = True


@register
class Trilu(Op):
    """Matrices with the elements below (above) diagonal ``k`` set to 0. Inputs ``x, k?``."""

    name = "trilu"
    kind = Kind.INDEX_MAP
    Attrs = TriluAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, k = S.operand(node, 0), S.optional(node, 1)
        if x.rank < 2:
            raise OpError(f"{S.show(x)} has no matrices; rank 2 or more is needed")
        if k is not None and S.vector_length(k, "the diagonal") != 1:
            raise OpError(f"the diagonal {S.show(k)} must be one number")
        return [TensorType(x.dtype, x.dims)]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x = inputs[0]
        k = S.to_ints(inputs[1])[0] if len(inputs) > 1 and inputs[1] is not None else 0
        row, col = np.arange(x.shape[-2])[:, None], np.arange(x.shape[-1])
        keep = col - row >= k if node.attrs.upper else col - row <= k
        return np.where(keep, x, np.zeros((), x.dtype))

    def stages(self, node: Node) -> list[E.Stage] | None:
        x, k, out = S.operand(node, 0), S.optional(node, 1), node.output
        vs = E.iter_vars(out.dims)
        diagonal = E.idx(0) if k is None else S.element(k, 0)
        keep = E.compare("ge" if node.attrs.upper else "le", E.sub(vs[-1], vs[-2]), diagonal)
        return [E.Stage(out, vs, E.select(keep, E.load(x, vs), E.const(0, x.dtype)))]
